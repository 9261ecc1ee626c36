"""Attention whose cost grows with the length alone, not with its square."""
