"""Convolution whose kernel is a sum of rank-one tensors."""

from tensorlrf_kernels.cp_conv2d.reference import cp_conv2d

__all__ = ["cp_conv2d"]
