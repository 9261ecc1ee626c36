"""Products that tensors in factors are made of, and multiplied by; norms of what they leave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from tensorlrf.factors.arrays import A
from tensorlrf.factors.autocast import without_autocast

_SQUARES = 1e-140, 1e140
"""Norms whose squares, and those of far smaller residuals, float64 holds."""

_SMALLEST = 2.0**-960
"""A norm of which residuals at the rounding still have all their digits."""


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


def share_norm(cores: Sequence[Tensor], carrier: int, exponent: int = 0) -> list[Tensor]:
    """Cores of a train or a tree times 2^exponent, the norm of one shared by all by powers of two.

    One core would else hold the norm of the whole, which float16 may not. Powers of two leave
    the other cores orthogonal to the last digit.
    """
    norm = float(torch.linalg.vector_norm(cores[carrier].to(torch.float64)))
    if norm == 0.0:
        return list(cores)
    step = round((math.log2(norm) + exponent) / len(cores))
    own = exponent - step * (len(cores) - 1)
    return [c * 2.0 ** (own if k == carrier else step) for k, c in enumerate(cores)]


def _smallest_pair(sizes: Sequence[Sequence[int]]) -> int:
    results = [a[0] * a[1] * b[1] * b[2] for a, b in pairwise(sizes)]
    return results.index(min(results))


@without_autocast()
def relative_residual(tensor: Tensor, approximation: Tensor) -> tuple[float, float]:
    """(||tensor - approximation||, ||tensor||) in float64, a block of leading rows at a time.

    Where ||tensor|| itself is beyond float64, or too small for its digits, both are in units of a
    power of two near the largest entry, which keeps their ratio.
    """
    residual, norm = _residual_in(1.0, tensor, approximation)
    if _SQUARES[0] < norm < _SQUARES[1]:
        return residual, norm
    # Squares may have left the range of float64: once more, of numbers near one.
    largest = float(tensor.detach().abs().max()) if tensor.numel() else 0.0
    if largest == 0.0 and approximation.numel():
        largest = float(approximation.detach().abs().max())
    if not 0.0 < largest < math.inf:
        return residual, norm
    unit = math.ldexp(1.0, max(-1074, min(1023, math.frexp(largest)[1])))
    residual, norm = _residual_in(unit, tensor, approximation)
    if norm > 0 and not _SMALLEST < norm * unit < math.inf:
        return residual, norm
    return residual * unit, norm * unit


def _residual_in(unit: float, tensor: Tensor, approximation: Tensor) -> tuple[float, float]:
    """The norms over `unit`."""
    if tensor.ndim == 0:
        tensor, approximation = tensor.reshape(1), approximation.reshape(1)
    rows = max(1, (1 << 20) * tensor.shape[0] // max(1, tensor.numel()))
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    residual = torch.zeros((), dtype=torch.float64, device=approximation.device)
    norm = torch.zeros_like(residual)
    with torch.no_grad():
        for start in range(0, tensor.shape[0], rows):
            block = tensor[start : start + rows].to(approximation.device, wide)
            other = approximation[start : start + rows].to(wide)
            if unit != 1.0:
                block, other = block / unit, other / unit
            residual += torch.linalg.vector_norm(block - other) ** 2
            norm += torch.linalg.vector_norm(block) ** 2
    return math.sqrt(float(residual)), math.sqrt(float(norm))
