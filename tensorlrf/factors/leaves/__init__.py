"""Formats that hold some of the entries of the whole themselves, as they are or as codes."""
