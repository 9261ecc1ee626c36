"""Sums of rank-one tensors."""
