"""Tensor trains and rings."""
