"""Factors in few bits, and dictionaries with sparse codes."""
