"""Damped Gauss-Newton for CP in all factors but the longest, which is the least-squares one at each
point: variable projection (Golub & Pereyra 1973; Kaufman 1975), damped as Levenberg and Marquardt
do. All factors at once pass swamps in which alternating sweeps take hundreds (Tomasi & Bro 2006).

With the other factors U_k of unit columns, Z their Khatri-Rao product and G = Z^T Z, the longest is
A = X_(0) Z G^-1. The Hessian of Gauss and Newton has a Kronecker structure (Phan, Tichavsky &
Cichocki 2013), and so has what is left of it once A is eliminated: the Schur complement of a block
G x I, in which A enters by A^T A alone. So a step costs the same however long the first mode is.

Terms that grow without bound and cancel are kept from it by a ridge on A (Paatero 2000), which is
on the squared norms of the terms and falls with the loss, so that an exact model is still found.
At the end it is let go where terms stay as they are without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import accumulate
from operator import mul
from typing import Any

import numpy as np
import torch

from tensorlrf.factors.algebra import khatri_rao

Array = np.ndarray[Any, Any]

DAMPING = 1e-2
"""At the first step, as a share of the diagonal."""

RIDGE = 1e-3
"""Of the squared norms of the terms as a share of ||X||^2, the share that is added to the loss:
where they are ten times ||X||^2, that is 1% of it."""

GROWN = 1.5
"""Growth of the squared norms of the terms up to which they stay as they are."""

OPEN = 1e-12
"""The least ridge on the unit diagonal of G: an inverse within float64, whatever the factors."""

STUCK = 1e10
"""Damping at which a step is as short as rounding."""

IDLE = 1e-8
"""Least diagonal of the damping as a share of the largest: of a term that has nearly vanished."""


@dataclass(frozen=True)
class Point:
    """Factors U_k (n_k, r) of unit columns but for the first, (n_0, r), and what belongs to them.

    rest     X_(0) - A Z^T
    grams    U_k^T U_k of the others
    inverse  (Z^T Z + ridge)^-1
    loss     ||rest||^2
    value    the loss, and the ridge times the sum of the squared norms of the terms
    """

    factors: tuple[Array, ...]
    rest: Array
    grams: tuple[Array, ...]
    inverse: Array
    loss: float
    value: float


class Projected:
    """The descent of one start. The first mode of `tensor` (n_0, n_1, ...) is eliminated.

    point    where it is; no step raises its loss
    square   ||X||^2
    ridge    on the first factor
    damping  as a share of the diagonal of the Hessian
    steps    that were tried
    """

    def __init__(self, tensor: Array, others: Sequence[Array]) -> None:
        self.unfolding = tensor.reshape(len(tensor), -1)
        self.square = _square(self.unfolding)
        self.ridge, self._share = 0.0, RIDGE
        self.point = self._at(others)
        self._anneal()
        self.damping, self._growth, self.steps = DAMPING, 2.0, 0
        self._known: tuple[Array, Array, Array] | None = None

    def step(self) -> bool:
        """Try one; whether it lowered the loss."""
        self.steps += 1
        if self._known is None:
            self._known = self._linearised()
        hessian, gradient, scale = self._known
        damped = hessian.copy()
        np.einsum("ii->i", damped)[...] += self.damping * scale
        factor, failed = torch.linalg.cholesky_ex(torch.from_numpy(damped))
        if int(failed):
            return self._shorter()
        right = torch.from_numpy(gradient)[:, None]
        change: Array = torch.cholesky_solve(right, factor)[:, 0].numpy()
        others = self.point.factors[1:]
        sizes = list(accumulate(u.size for u in others))[:-1]
        parts = np.split(change, sizes)
        moved = self._at([u + p.reshape(u.shape) for u, p in zip(others, parts, strict=True)])
        if not moved.value < self.point.value:
            return self._shorter()
        # Nielsen 1999: less damping the better the model foretold the gain.
        foretold = float(change @ (self.damping * scale * change + gradient))
        gain = (self.point.value - moved.value) / foretold if foretold > 0 else 1.0
        self.damping *= max(1 / 3, 1 - (2 * min(gain, 1.0) - 1) ** 3)
        self._growth, self.point, self._known = 2.0, moved, None
        self._anneal()
        return True

    def release(self, steps: int, tol: float) -> None:
        """Steps without the ridge, until one lowers the error by less than `tol` of itself. Where
        they let terms grow they are undone."""
        kept, size = self.point, _square(self.point.factors[0])
        self._share = 0.0
        self._anneal()
        self._known = None
        for _ in range(steps):
            before = self.point.loss
            moved = self.step()
            if _square(self.point.factors[0]) > GROWN * size:
                self.point = kept
                return
            if self.stuck or (moved and before - self.point.loss <= 2 * tol * before):
                return

    @property
    def stuck(self) -> bool:
        """Whether no step lowers the loss, however short."""
        return self.damping > STUCK

    def _anneal(self) -> None:
        """The ridge that belongs to the loss; it only falls."""
        due = self._share * self.point.loss / self.square if self.square > 0 else 0.0
        self.ridge = min(self.ridge or due, due)
        value = self.point.loss + self.ridge * _square(self.point.factors[0])
        self.point = replace(self.point, value=value)

    def _shorter(self) -> bool:
        self.damping *= self._growth
        self._growth *= 2
        return False

    def _at(self, others: Sequence[Array]) -> Point:
        units = [u / np.maximum(np.linalg.norm(u, axis=0), np.finfo(u.dtype).tiny) for u in others]
        grams = tuple([u.T @ u for u in units])
        system = reduce(mul, grams)
        ridged = system + max(self.ridge, OPEN) * np.eye(len(system))
        inverse = np.linalg.inv(ridged)
        product = khatri_rao(tuple(units))
        wanted = self.unfolding @ product
        first = wanted @ inverse
        first += (wanted - first @ ridged) @ inverse  # once more, for what the inverse has lost
        rest = self.unfolding - first @ product.T
        loss = _square(rest)
        value = loss + self.ridge * _square(first)
        return Point((first, *units), rest, grams, inverse, loss, value)

    def _linearised(self) -> tuple[Array, Array, Array]:
        """The lower half of the Hessian (P, P), the descent (P,), the scale of the damping (P,)."""
        first, *others = self.point.factors
        weight = first.T @ first
        hessian = self._eliminated(weight)
        rows = [0, *accumulate(len(u) for u in others)]
        grams = self.point.grams
        for k, u in enumerate(others):
            for m, v in enumerate(others[: k + 1]):
                block = hessian[rows[k] : rows[k + 1], :, rows[m] : rows[m + 1]]
                shared = [g for j, g in enumerate(grams) if j not in (k, m)]
                inner = reduce(mul, shared, weight)
                if k == m:
                    places = range(len(u))
                    block[places, :, places] += inner
                else:  # d/du_k[i, r] with d/du_m[j, s]: inner[r, s] u_k[i, s] u_m[j, r]
                    block += (u[:, None] * inner)[:, :, None] * v.T[None, :, :, None]
        unknowns = rows[-1] * len(weight)
        pull = (self.point.rest.T @ first).reshape(*[len(u) for u in others], -1)
        # Columns are of unit length: along themselves they cannot go.
        pulls = [_mttkrp(pull, others, k) for k in range(len(others))]
        gradient = np.concatenate(
            [(g - u * (u * g).sum(0)).ravel() for g, u in zip(pulls, others, strict=True)]
        )
        diagonal = np.einsum("ii->i", weight)
        scale = np.tile(np.maximum(diagonal, IDLE * diagonal.max()), rows[-1])
        return hessian.reshape(unknowns, unknowns), gradient, scale

    def _eliminated(self, weight: Array) -> Array:
        """What the first factor takes out of it, with a minus: (sum n_k, r, sum n_k, r)."""
        rank = len(weight)
        coupling = []
        for k, u in enumerate(self.point.factors[1:]):
            shared = [g for j, g in enumerate(self.point.grams) if j != k]
            inner = reduce(mul, shared, np.ones((rank, rank)))
            coupling.append((inner[:, None] * u.T[:, :, None]).reshape(rank, -1))
        wide = np.concatenate(coupling, axis=1)  # (r, P)
        taken: Array = (wide.T @ (self.point.inverse @ wide)).reshape(
            -1, rank, wide.shape[1] // rank, rank
        )
        taken *= -weight[:, None]
        return taken


def _square(array: Array) -> float:
    return float(np.vdot(array, array))


def _mttkrp(columns: Array, others: Sequence[Array], mode: int) -> Array:
    """Of the columns (n_1, ..., r), each contracted with its own of all others."""
    rank = columns.shape[-1]
    turned = np.moveaxis(columns, mode, 0).reshape(len(others[mode]), -1, rank)
    rest = [u for j, u in enumerate(others) if j != mode]
    if not rest:
        return turned[:, 0]
    product: Array = np.einsum("ijr,jr->ir", turned, khatri_rao(tuple(rest)))
    return product


SPAN = 5
"""Steps over which progress is judged: single ones are uneven."""


def descend(
    start: Projected, steps: int, tol: float, least: float, look: Callable[[Projected], bool]
) -> bool:
    """At most so many steps; ended where `SPAN` of them lower the error by less than `tol` of
    itself each, or the loss is at `least`. `look` is called every `SPAN` steps, and stops by
    True.

    Returns whether it was ended for what the steps gained.
    """
    before = start.point.loss
    for made in range(1, steps + 1):
        start.step()
        if start.point.loss <= least or start.stuck:
            look(start)
            return True
        if made % SPAN == 0:
            if look(start):
                return False
            if before - start.point.loss <= 2 * SPAN * tol * before:  # losses are squares
                return True
            before = start.point.loss
    look(start)
    return False
