"""Linear layer whose weight is a product of two matrices."""

from tensorlrf_kernels.lowrank_linear.reference import lowrank_linear

__all__ = ["lowrank_linear"]
