"""Matrices told by some of their own columns and rows."""
