"""Products that tensors in factors are made of, and multiplied by."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from tensorlrf.factors.arrays import A


def khatri_rao(factors: tuple[A, ...]) -> A:
    """Columnwise Kronecker product, first factor slowest: (prod n_k, r)."""
    product = factors[0]
    for f in factors[1:]:
        product = (product[:, None] * f).reshape(-1, f.shape[1])
    return product


def mode_product(tensor: Tensor, matrix: Tensor, mode: int) -> Tensor:
    """tensor x_mode matrix: (.., n_mode, ..) and (m, n_mode) to (.., m, ..); contiguous.

    Written as one matrix product, or one batched product, on the tensor as it lies: no unfolding
    is copied (Kolda & Bader 2009, section 2.5).
    """
    before = tensor.shape[:mode]
    after = tensor.shape[mode + 1 :]
    n = tensor.shape[mode]
    if not after.numel() or not before.numel() or n == 0:
        return tensor.new_zeros(*before, matrix.shape[0], *after)
    if mode == 0:
        flat = matrix @ tensor.reshape(n, after.numel())
    elif not after:
        flat = tensor.reshape(before.numel(), n) @ matrix.T
    else:
        flat = matrix @ tensor.reshape(before.numel(), n, after.numel())
    return flat.reshape(*before, matrix.shape[0], *after)


def chain_product(cores: Sequence[Tensor]) -> Tensor:
    """Cores (r_k, n_k, r_{k+1}) multiplied out: (r_0, prod n_k, r_N), the pair with the smallest
    product first."""
    parts = list(cores)
    while len(parts) > 1:
        k = _smallest_pair([p.shape for p in parts])
        a, b = parts[k], parts[k + 1]
        product = a.flatten(0, 1) @ b.flatten(1)
        parts[k : k + 2] = [product.reshape(a.shape[0], a.shape[1] * b.shape[1], b.shape[2])]
    return parts[0]


def _smallest_pair(sizes: Sequence[Sequence[int]]) -> int:
    results = [a[0] * a[1] * b[1] * b[2] for a, b in pairwise(sizes)]
    return results.index(min(results))
