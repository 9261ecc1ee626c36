"""Factors (n_k, r) one below the other in one matrix (sum n_k, r), and products of their rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from tensorlrf.factors import CPFactors
from tensorlrf.factors.algebra import khatri_rao


def apart(stack: Tensor, shape: Sequence[int]) -> tuple[Tensor, ...]:
    """The factors, as views."""
    return torch.split(stack, list(shape))


def offsets(shape: Sequence[int], device: torch.device) -> Tensor:
    """(N, 1): the row at which each factor begins."""
    first = [0, *accumulate(shape[:-1])]
    return torch.tensor(first, dtype=torch.int64, device=device)[:, None]


def others(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Of rows (N, s, r), one of each mode for each of s entries: the product of all (s, r), and for
    each mode that of all others (N, s, r)."""
    order = len(rows)
    made = torch.empty_like(rows)
    made[0] = 1
    for k in range(1, order):  # those in front
        torch.mul(made[k - 1], rows[k - 1], out=made[k])
    behind = rows[-1]
    for k in range(order - 2, -1, -1):
        made[k] *= behind
        behind = behind * rows[k]
    return behind, made


def contract_others(partial: Tensor, factors: Sequence[Tensor]) -> list[Tensor]:
    """(n_1 n_2 ..., r) contracted column by column with all factors but one: (n_k, r) for each."""
    made: list[Tensor] = []
    rest = list(factors)
    while len(rest) > 1:
        first, *rest = rest
        grid = partial.view(len(first), -1, first.shape[1])
        made.append((grid * khatri_rao(tuple(rest))).sum(1))
        partial = (grid * first[:, None]).sum(0)
    return [*made, partial]


def balanced(stack: Tensor, shape: Sequence[int]) -> Tensor:
    """The same model with columns of equal length in all modes; those of a component that has a
    column of zeros stay as they are."""
    factors = apart(stack, shape)
    lengths = torch.stack([f.norm(dim=0) for f in factors])  # (N, r)
    size = lengths.log().mean(0).exp()
    turned = torch.where(size > 0, size / lengths, 1.0)
    return torch.cat([f * own for f, own in zip(factors, turned, strict=True)])


def as_factors(stack: Tensor, shape: Sequence[int], scale: float, dtype: torch.dtype) -> CPFactors:
    """Columns of unit length, and falling weights times `scale`; in memory of their own.

    A column of zeros takes a constant direction, of weight zero. float16 shares among the factors
    what weights could not hold.
    """
    columns, weights = [], torch.full_like(stack[0], scale)
    for f in apart(stack, shape):
        length = f.norm(dim=0)
        flat = torch.full_like(f, len(f) ** -0.5)
        columns.append(torch.where(length > 0, f / length.clamp_min(1e-300), flat))
        weights = weights * length
    order = weights.argsort(descending=True, stable=True)
    weights, columns = weights[order], [f[:, order] for f in columns]
    most = torch.finfo(dtype).max / 4
    excess = float(weights[0]) / most
    if excess > 1:
        share = excess ** (1 / len(columns)) * 2
        weights, columns = weights / share ** len(columns), [f * share for f in columns]
    return CPFactors(weights.to(dtype), tuple(f.to(dtype) for f in columns))
