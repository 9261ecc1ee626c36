"""Sweeps over the factors and the core of a non-negative Tucker model.

A factor is a problem of non-negative least squares in its columns, as in CP (Phan & Cichocki 2011,
"Extended HALS algorithm for nonnegative Tucker decomposition"); the core is one in all its entries
at once, whose Gram is a Kronecker product: for that there are projected gradients with momentum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from operator import mul

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import Descent, beyond
from tensorlrf.decomposition.linalg._gram import unfold
from tensorlrf.decomposition.linalg._spectrum import ratio
from tensorlrf.decomposition.linalg.multilinear._columns import normalise
from tensorlrf.decomposition.linalg.multilinear._mttkrp import split
from tensorlrf.decomposition.linalg.multilinear._residual import sum_of_squares
from tensorlrf.decomposition.nonnegative._data import CANCELLED, Data, gram
from tensorlrf.decomposition.nonnegative._hals import non_negative
from tensorlrf.factors import TuckerFactors
from tensorlrf.factors.algebra import mode_product

STEPS = 20
"""Of the core in a sweep."""

_BLOCK = 1 << 19  # entries of a residual at once


@dataclass(frozen=True)
class Model:
    """A core (r_1, ..., r_N) and factors (n_k, r_k) with columns of unit length."""

    core: Tensor
    factors: tuple[Tensor, ...]

    def factors_of(self, data: Data) -> TuckerFactors:
        """As the user has it."""
        core = (self.core.to(torch.float64) * data.scale).to(data.dtype)
        return TuckerFactors(core, tuple(u.to(data.dtype) for u in self.factors))


class TuckerSweep:
    """One sweep from a model, which stays as it is."""

    def __init__(self, data: Data, start: Model) -> None:
        self.data, self.core, self.factors = data, start.core, list(start.factors)
        self.grams = [gram(u) for u in self.factors]

    def run(self) -> tuple[Model, float]:
        """The next model, and its relative error."""
        self._descend(self.data.tensor, tuple(range(self.core.ndim)))
        grams = [g.to(self.core.dtype) for g in self.grams]
        self.core = core_step(self.core, self.contracted, grams)
        found = Model(self.core, tuple(self.factors))
        wide = self.core.to(torch.float64)
        inner = float((wide * self.contracted).sum())
        square = self.data.square - 2 * inner + float((wide * _times(wide, self.grams)).sum())
        if square > CANCELLED[self.core.dtype] * self.data.square:
            return found, ratio(square, self.data.square)
        return found, true_error(self.data, found)

    def _descend(self, partial: Tensor, modes: tuple[int, ...]) -> None:
        """Update the factors of `modes`, from the tensor with all others contracted."""
        if len(modes) == 1:
            self._update(modes[0], partial)
            return
        at = split(tuple(partial.shape[k] for k in modes))
        for own, others in ((modes[:at], modes[at:]), (modes[at:], modes[:at])):
            self._descend(self._contract(partial, others), own)

    def _contract(self, partial: Tensor, modes: tuple[int, ...]) -> Tensor:
        for k in reversed(modes):
            partial = mode_product(partial, self.factors[k].T, k)
        return partial

    def _update(self, mode: int, partial: Tensor) -> None:
        core, before = unfold(self.core, mode), self.factors[mode]
        others = [None if k == mode else g for k, g in enumerate(self.grams)]
        wide = self.core.to(torch.float64)
        system = unfold(wide, mode) @ unfold(_times(wide, others), mode).T
        rhs = unfold(partial, mode) @ core.T
        rounds = self.data.rounds(*before.shape)
        unit, length = normalise(non_negative(before, rhs, system, rounds), before)
        # A column that no part of the core uses has kept what it was, and so has the core.
        self.factors[mode], self.grams[mode] = unit, gram(unit)
        sizes = [-1 if k == mode else 1 for k in range(self.core.ndim)]
        self.core = self.core * length.to(core.dtype).reshape(sizes)
        self.contracted = mode_product(partial, unit.T, mode)


def core_step(old: Tensor, rhs: Tensor, grams: list[Tensor]) -> Tensor:
    """From G = `old` towards the G >= 0 of least <G, G x_k S_k> / 2 - <R, G>: projected gradients
    with momentum (Nesterov 1983), which begins anew where it leads uphill (O'Donoghue & Candes
    2015). `old` itself, or a step of plain descent, where that did not lower it."""
    step = 1 / max(reduce(mul, [float(torch.linalg.matrix_norm(g, 2)) for g in grams]), 1e-30)

    def value(core: Tensor) -> float:
        image = _times(core, grams)
        return float((core * (0.5 * image - rhs)).sum(dtype=torch.float64))

    def descended(core: Tensor) -> Tensor:
        return (core - step * (_times(core, grams) - rhs)).clamp_min_(0.0)

    core = ahead = old
    momentum = 1.0
    for _ in range(STEPS):
        new = descended(ahead)
        if float(((ahead - new) * (new - core)).sum()) > 0:
            ahead, momentum = core, 1.0
            continue
        grown = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = new + ((momentum - 1) / grown) * (new - core)
        core, momentum = new, grown
    return core if value(core) <= value(old) else descended(old)


def true_error(data: Data, model: Model) -> float:
    """Of the residual itself, some rows of the first mode at a time."""
    spread = model.core
    for k in range(1, spread.ndim):
        spread = mode_product(spread, model.factors[k], k)
    flat, tensor = spread.flatten(1), data.tensor.flatten(1)
    rows = max(1, _BLOCK // tensor.shape[1])
    parts = zip(torch.split(tensor, rows), torch.split(model.factors[0], rows), strict=True)
    squares = [sum_of_squares(torch.addmm(x, u, flat, alpha=-1)) for x, u in parts]
    return ratio(reduce(torch.add, squares), data.square)


def ahead(here: Model, last: Model, reach: float) -> Model:
    """Beyond `here` as seen from `last`, without what would be negative."""
    core, *factors = beyond((here.core, *here.factors), (last.core, *last.factors), reach)
    core, units = core.clamp_min_(0.0), []
    for mode, (moved, new) in enumerate(zip(factors, here.factors, strict=True)):
        unit, length = normalise(moved.clamp_min_(0.0), new)
        sizes = [-1 if k == mode else 1 for k in range(core.ndim)]
        core = core * length.to(core.dtype).reshape(sizes)
        units.append(unit)
    return Model(core, tuple(units))


def random_start(data: Data, ranks: tuple[int, ...], draws: torch.Generator) -> Descent[Model]:
    """Uniform factors at unit length, and the core in proportion to what they see."""
    like = data.tensor
    factors = [
        torch.rand(n, r, generator=draws, device=like.device, dtype=like.dtype)
        for n, r in zip(like.shape, ranks, strict=True)
    ]
    factors = [u / torch.linalg.vector_norm(u, dim=0) for u in factors]
    seen = like
    for k in reversed(range(like.ndim)):
        seen = mode_product(seen, factors[k].T, k)
    core = seen.clamp_min(0.0)
    square = float((core * _times(core, [gram(u).to(core.dtype) for u in factors])).sum())
    share = float((core * seen).sum()) / square if square > 0 else 0.0
    if share == 0.0:
        return corner(data, ranks)
    model = Model(core * share, tuple(factors))
    return Descent.at(model, true_error(data, model))


def corner(data: Data, ranks: tuple[int, ...]) -> Descent[Model]:
    """The entries of the slices with the largest ones, as they are where they are positive: a
    model at least as near as zero, and at full rank the nearest."""
    core, factors = data.tensor, []
    for k, r in enumerate(ranks):
        n = core.shape[k]
        rows = data.tensor.movedim(k, 0).flatten(1).amax(1).topk(r).indices.sort().values
        core = core.index_select(k, rows)
        factors.append(torch.nn.functional.one_hot(rows, n).T.to(core.dtype))
    model = Model(core.clamp_min(0.0), tuple(factors))
    return Descent.at(model, true_error(data, model))


def _times(core: Tensor, grams: list[Tensor] | list[Tensor | None]) -> Tensor:
    for k, g in enumerate(grams):
        if g is not None:
            core = mode_product(core, g, k)
    return core
