"""Generalised CP: sums of rank-one tensors by losses that are no squares."""
