"""Columns of factors: their lengths, and weights beside them."""

from __future__ import annotations

import torch
from torch import Tensor


def normalise(solution: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
    """Unit columns (n, ...) in the dtype of `old`, and their former lengths (...), float64.

    A column that vanished keeps its old direction, with weight zero: it can come back.
    """
    length = torch.linalg.vector_norm(solution, dim=0)
    tiny = torch.finfo(solution.dtype).tiny
    unit = (solution / length.clamp_min(tiny)).to(old.dtype)
    return torch.where(length > tiny, unit, old), length.to(torch.float64)


def spread_weights(
    factors: list[Tensor], weights: Tensor, dtype: torch.dtype, kept: dict[int, Tensor]
) -> tuple[list[Tensor], Tensor]:
    """Spread the weights over the free modes where they overflow the dtype (float16: 65504)."""
    limit = torch.finfo(dtype).max / 2
    if max(map(abs, weights.tolist())) <= limit:
        return factors, weights
    free = [k for k in range(len(factors)) if k not in kept]
    share = weights.abs() ** (1 / len(free))
    spread = [u * share.to(u.dtype) if k in free else u for k, u in enumerate(factors)]
    return spread, weights.sign()
