"""Convolution whose kernel is a small kernel between channel projections."""

from tensorlrf_kernels.tucker_conv2d.reference import tucker_conv2d

__all__ = ["tucker_conv2d"]
