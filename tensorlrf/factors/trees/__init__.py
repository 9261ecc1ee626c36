"""Formats of several matrices at once, of nested bases and of sums of cores."""
