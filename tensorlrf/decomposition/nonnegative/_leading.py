"""Starts from singular vectors without what is negative in them.

Boutsidis & Gallopoulos 2008, "SVD based initialization: a head start for nonnegative matrix
factorization" (NNDSVD), here for every mode of a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tensorlrf.decomposition.linalg._gram import keep, leading_vectors, unfold
from tensorlrf.decomposition.nonnegative._data import Data


def leading_columns(data: Data, ranks: Sequence[int], draws: torch.Generator) -> list[Tensor]:
    """Of each mode the leading left singular vectors (n_k, r_k), each without its negative part or
    the positive one, whichever is less, at unit length; uniform ones beyond n_k.

    Of a matrix a pair of vectors keeps parts of one sign, by the product of their lengths: parts of
    unlike signs would be a term that the matrix has negative.
    """
    found = []
    for mode, (n, r) in enumerate(zip(data.shape, ranks, strict=True)):
        most = min(r, data.tensor.shape[mode])
        vectors = leading_vectors(data.tensor, mode, keep(most))
        found.append(data.grown(mode, vectors)[:, : min(n, r)])
    parts = _pair(data, *found) if len(found) == 2 else [_larger(u) for u in found]
    return [_filled(u, r, draws) for u, r in zip(parts, ranks, strict=True)]


def _larger(vectors: Tensor) -> Tensor:
    plus, minus = _parts(vectors)
    return torch.where(_lengths(plus) >= _lengths(minus), plus, minus)


def _pair(data: Data, left: Tensor, right: Tensor) -> list[Tensor]:
    r = min(left.shape[1], right.shape[1])
    a, b = left[:, :r], right[:, :r]
    along = ((unfold(data.tensor, 0).T @ data.seen(0, a)) * data.seen(1, b)).sum(0)
    b = torch.where(along >= 0, b, -b)
    (plus_a, minus_a), (plus_b, minus_b) = _parts(a), _parts(b)
    plus = _lengths(plus_a) * _lengths(plus_b) >= _lengths(minus_a) * _lengths(minus_b)
    pairs = ((plus_a, minus_a, left), (plus_b, minus_b, right))
    return [
        torch.cat([torch.where(plus, up, down), _larger(whole[:, r:])], 1)
        for up, down, whole in pairs
    ]


def _parts(vectors: Tensor) -> tuple[Tensor, Tensor]:
    return vectors.clamp_min(0.0), (-vectors).clamp_min(0.0)


def _lengths(columns: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(columns, dim=0)
    return lengths


def _filled(columns: Tensor, r: int, draws: torch.Generator) -> Tensor:
    """r columns of unit length: one of zeros, and what is short of r, uniform."""
    n, have = columns.shape
    more = torch.rand(n, r, generator=draws, device=columns.device, dtype=columns.dtype)
    more[:, :have] = torch.where(columns.amax(0) > 0, columns, more[:, :have])
    return more / _lengths(more)
