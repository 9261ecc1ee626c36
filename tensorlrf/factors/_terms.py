"""Factors as a sum of terms: the first few of them, and the order in which these say most."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, RankError, ShapeError


def checked(rank: Any, most: int) -> int:
    """A number of terms of which there are `most`. Raises RankError."""
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= most:
        raise RankError(f"rank={rank!r} must be an int from 1 to {most}, the rank of the factors")
    return rank


def checked_each(rank: Any, most: tuple[int, ...]) -> tuple[int, ...]:
    """One such number for each rank; an int bounds all. Raises RankError."""
    if isinstance(rank, tuple) and len(rank) == len(most):
        return tuple(checked(r, n) for r, n in zip(rank, most, strict=True))
    if isinstance(rank, tuple):
        raise RankError(f"rank={rank!r} must have {len(most)} entries, as {most} of the factors")
    bound = checked(rank, max(most, default=1))
    return tuple(min(bound, n) for n in most)


def refuse_gram(factors: object, gram: Tensor | None) -> None:
    """Raise ArgumentError where a metric is given for a format that has no order in one."""
    if gram is not None:
        raise ArgumentError(
            f"gram is given for a {type(factors).__name__}; only terms of a LowRank are ordered in "
            "the metric of inputs, so leave it out"
        )


def principal(left: Tensor, right: Tensor, gram: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """left' right' = left right, for left (m, r) and right (r, n), whose first k terms are the best
    approximation of rank k: the truncated SVD, or with a `gram` G (n, n) U U^T left right for the
    top eigenvectors U of (left right) G (left right)^T. Both sides of a term have equal norms."""
    r = left.shape[1]
    basis, small = torch.linalg.qr(left.to(torch.float64))  # (m, k), (k, r)
    core = small @ right.to(torch.float64)  # (k, n)
    if gram is None:
        turn, values, lines = torch.linalg.svd(core, full_matrices=False)
        first, second = basis @ (turn * values.sqrt()), values.sqrt()[:, None] * lines
    else:
        turn = _leading_first(core @ _moments(gram, right) @ core.T)
        lines = turn.T @ core
        roots = torch.linalg.vector_norm(lines, dim=1).sqrt()
        first = basis @ turn * roots
        second = lines / torch.where(roots > 0, roots, 1.0)[:, None]
    return filled(first, 1, r).to(left.dtype), filled(second, 0, r).to(right.dtype)


def _leading_first(symmetric: Tensor) -> Tensor:
    """Its eigenvectors, that of the largest eigenvalue first."""
    vectors: Tensor = torch.linalg.eigh(symmetric)[1]
    return vectors.flip(1)


def leading_basis(unfolding: Tensor) -> Tensor:
    """Left singular vectors of a matrix, as many as it has rows."""
    return _leading_first(unfolding @ unfolding.T)


def filled(tensor: Tensor, dim: int, size: int) -> Tensor:
    """With zeros behind it where it is shorter than `size`."""
    short = size - tensor.shape[dim]
    if short == 0:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = short
    return torch.cat([tensor, tensor.new_zeros(shape)], dim)


def _moments(gram: Any, right: Tensor) -> Tensor:
    n = right.shape[1]
    if not isinstance(gram, Tensor) or tuple(gram.shape) != (n, n):
        got = tuple(gram.shape) if isinstance(gram, Tensor) else type(gram).__name__
        raise ShapeError(f"gram is {got}; it must be a tensor ({n}, {n}), a side an input")
    wide: Tensor = gram.to(right.device, torch.float64)
    if not bool(torch.isfinite(wide).all()):
        raise ArgumentError("gram has entries that are NaN or Inf; look at the inputs")
    return (wide + wide.T) / 2
