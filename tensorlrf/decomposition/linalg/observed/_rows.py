"""Least squares of one slice after the other: where a block of a model meets each slice of a mode
by unknowns of its own, W decides each system by itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

RIDGE = {torch.float32: 1e-6, torch.float64: 1e-13}
"""Of a step, relative to the largest diagonal entry of its system: somewhat above the rounding of
Gram matrices in that dtype. It draws to where the block was, not to zero, and so moves no solution.
"""

CHUNK = 1 << 22
"""Entries of systems that are held at once."""

TINY = 1e-150
"""In place of the length of a column of zeros; its square is a number."""


def signed_qr(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Q R with a diagonal of R that is not below zero: paths of matrices give paths."""
    basis, rest = torch.linalg.qr(matrix)
    diagonal = rest.diagonal()
    signs = torch.ones_like(diagonal).copysign_(diagonal)
    return basis * signs, signs[:, None] * rest


def pairs(columns: Tensor) -> Tensor:
    """Products of columns (..., q) two by two, (..., q (q + 1) / 2): what is symmetric, once."""
    first, second = _two_by_two(columns.shape[-1], columns.device)
    return columns[..., first] * columns[..., second]


@cache
def _two_by_two(q: int, device: torch.device) -> tuple[Tensor, Tensor]:
    first, second = torch.triu_indices(q, q, device=device)
    return first, second


@cache
def places(q: int, device: torch.device) -> Tensor:
    """(q, q): where among `pairs` the product of two columns stands."""
    found = torch.empty(q, q, dtype=torch.long, device=device)
    first, second = _two_by_two(q, device)
    found[first, second] = found[second, first] = torch.arange(len(first), device=device)
    return found


def solved_rows(
    systems: Callable[[slice], Tensor], rhs: Tensor, old: Tensor, ridge: float
) -> Tensor:
    """x_i nearest to where it was (`old`) that solves G_i x_i = b_i, for each row i.

    systems   of some of the rows, G (s, q, q), float64
    rhs, old  (n, q) of any dtype; the result is float64

    The step is what is solved for, so that rounding costs no more than it has cost `rhs`, and a
    direction that no entry tells is left as it was.
    """
    n, q = rhs.shape
    found = []
    together = max(1, CHUNK // (q * q))
    if n <= together:
        return _stepped(systems(slice(None)), rhs.double(), old.double(), ridge)
    for first in range(0, n, together):
        part = slice(first, first + together)
        found.append(_stepped(systems(part), rhs[part].double(), old[part].double(), ridge))
    return torch.cat(found)


def _stepped(grams: Tensor, rhs: Tensor, old: Tensor, ridge: float) -> Tensor:
    # In units in which columns are of one length over all rows: weak components are no noise.
    length = grams.diagonal(dim1=1, dim2=2).mean(0).sqrt_().clamp_min_(TINY)
    grams = grams / (length[:, None] * length)
    residual = (rhs / length)[..., None].baddbmm(grams, (old * length)[..., None], alpha=-1)
    diagonal = grams.diagonal(dim1=1, dim2=2)
    largest = diagonal.amax(1, keepdim=True).clamp_min_(TINY)
    while True:
        diagonal.add_(largest, alpha=ridge)
        factor, failed = torch.linalg.cholesky_ex(grams)
        if not failed.any():
            break
        ridge *= 30
    return old + torch.cholesky_solve(residual, factor)[..., 0] / length
