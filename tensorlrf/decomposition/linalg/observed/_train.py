"""Tensor trains, matrices of low rank among them, fitted to what is observed.

One core after the other, the others orthonormal as seen from it (Holtz, Rohwedder & Schneider 2012;
Grasedyck, Kluge & Kraemer 2015).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import beyond
from tensorlrf.decomposition.linalg.observed._complete import WIDEST
from tensorlrf.decomposition.linalg.observed._observed import Observed
from tensorlrf.decomposition.linalg.observed._rows import (
    RIDGE,
    pairs,
    places,
    signed_qr,
    solved_rows,
)
from tensorlrf.factors import Factors
from tensorlrf.factors.algebra import chain_product

F = TypeVar("F", bound=Factors)

Cores = list[Tensor]
"""(r_k, n_k, r_{k+1}), in the working dtype."""


class TrainCompletion(Generic[F]):
    """Sweeps of alternating least squares forth and back over the cores of a train.

    build  factors in the user's dtype of cores, the norm of the whole in the first of them
    """

    def __init__(self, build: Callable[[Cores], F], *, by_em: bool = False) -> None:
        self.factors, self.by_em = build, by_em

    def sweep(self, seen: Observed, state: Cores) -> Cores:
        cores = orthonormal_behind(state)
        widest = max(c.shape[0] * c.shape[2] for c in cores)
        imputed = self.by_em or widest > WIDEST**2
        filled = seen.filled(self.model(cores)) if imputed else None
        last = len(cores) - 1
        for k in range(last):
            cores[k] = _solved(seen, cores, k, filled)
            cores[k : k + 2] = forth(cores[k], cores[k + 1])
        for k in range(last, 0, -1):
            cores[k] = _solved(seen, cores, k, filled)
            cores[k - 1 : k + 1] = back(cores[k - 1], cores[k])
        return cores

    def model(self, state: Cores) -> Tensor:
        return chain_product(state).reshape([c.shape[1] for c in state])

    def beyond(self, state: Cores, last: Cores, reach: float) -> Cores:
        return beyond(state, last, reach)


def forth(core: Tensor, behind: Tensor) -> Cores:
    """The same product with the first core orthonormal as (r n, r')."""
    q, rest = signed_qr(core.flatten(0, 1))
    return [q.reshape(*core.shape[:2], -1), torch.tensordot(rest, behind, 1)]


def back(before: Tensor, core: Tensor) -> Cores:
    """The same product with the second core orthonormal as (r, n r')."""
    q, rest = signed_qr(core.flatten(1).T)
    return [torch.tensordot(before, rest.T, 1), q.T.reshape(-1, *core.shape[1:])]


def orthonormal_behind(cores: Sequence[Tensor]) -> Cores:
    """The same train with all cores but the first orthonormal as (r, n r')."""
    made = list(cores)
    for k in range(len(made) - 1, 0, -1):
        made[k - 1 : k + 1] = back(made[k - 1], made[k])
    return made


def _solved(seen: Observed, cores: Cores, k: int, filled: Tensor | None) -> Tensor:
    """The core that is best for the others, which are orthonormal as seen from it."""
    core = cores[k]
    a, n, b = core.shape
    left = chain_product(cores[:k])[0] if k else core.new_ones(1, 1)  # (n_0 ... n_{k-1}, a)
    right = chain_product(cores[k + 1 :])[:, :, 0].T if cores[k + 1 :] else core.new_ones(1, 1)
    if filled is not None:
        return _between(filled, left, n, right)
    products = _between(seen.weights, pairs(left), n, pairs(right)).transpose(0, 1)
    first = places(a, core.device)[:, None, :, None]
    second = places(b, core.device)[None, :, None, :]

    def systems(rows: slice) -> Tensor:
        return products[rows].double()[:, first, second].reshape(-1, a * b, a * b)

    rhs = _between(seen.weighted, left, n, right)
    rows, old = (t.transpose(0, 1).reshape(n, a * b) for t in (rhs, core))
    found = solved_rows(systems, rows, old, RIDGE[core.dtype])
    return found.to(core.dtype).reshape(n, a, b).transpose(0, 1)


def _between(tensor: Tensor, left: Tensor, n: int, right: Tensor) -> Tensor:
    """(a, n, b) of a tensor contracted with left (L, a) in front of a mode of size n and with
    right (R, b) behind it, the longer side first."""
    (L, a), (R, b) = left.shape, right.shape
    if R >= L:
        part = tensor.reshape(L * n, R) @ right
        return (left.T @ part.reshape(L, n * b)).reshape(a, n, b)
    part = left.T @ tensor.reshape(L, n * R)
    return (part.reshape(a * n, R) @ right).reshape(a, n, b)


def train_unknowns(sizes: Sequence[int], ranks: Sequence[int]) -> int:
    """Free parameters of trains with these inner ranks: of their cores, less a change of basis at
    every bond."""
    bonds = (1, *ranks, 1)
    cores = sum(n * bonds[k] * bonds[k + 1] for k, n in enumerate(sizes))
    return cores - sum(r * r for r in ranks)
