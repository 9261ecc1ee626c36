"""Truncated singular value decompositions."""
