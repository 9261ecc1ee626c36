"""The kernel core: layer operations on factors, as functions of plain tensors.

One package an operation; each has a `reference` in plain torch, which states what the operation
means and runs where no kernel does. Nothing here knows of factors objects.
"""

from tensorlrf_kernels._autotune import autotune

__all__ = ["autotune"]
