"""Factors of what comes piece by piece."""
