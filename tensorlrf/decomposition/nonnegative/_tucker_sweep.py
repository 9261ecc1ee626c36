"""Sweeps over the factors and the core of a non-negative Tucker model.

A factor is a problem of non-negative least squares in its columns, as in CP (Phan & Cichocki 2011,
"Extended HALS algorithm for nonnegative Tucker decomposition"); the core is one in all its entries
at once, whose Gram is a Kronecker product: for that there are projected gradients with momentum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from tensorlrf.decomposition.nonnegative._data import Data, gram
from tensorlrf.decomposition.nonnegative._hals import non_negative
from tensorlrf.decomposition.nonnegative._leading import leading_columns
from tensorlrf.factors import TuckerFactors
from tensorlrf.factors.algebra import mode_product

STEPS = 20
"""Of the core in a sweep."""

_BLOCK = 1 << 19  # entries of a residual at once


@dataclass(frozen=True)
class Model:
    """A core (r_1, ..., r_N) and factors (n_k, r_k) with columns of unit length; None stands for a
    mode that is left whole."""

    core: Tensor
    factors: tuple[Tensor | None, ...]

    @property
    def modes(self) -> tuple[int, ...]:
        """Those that have a factor."""
        return tuple(k for k, u in enumerate(self.factors) if u is not None)

    def factors_of(self, data: Data) -> TuckerFactors:
        """As the user has it."""
        core = (self.core.to(torch.float64) * data.scale).to(data.dtype)
        factors = tuple(u.to(data.dtype) for u in self.factors if u is not None)
        return TuckerFactors(core, factors, self.modes)


class TuckerSweep:
    """One sweep from a model, which stays as it is."""

    def __init__(self, data: Data, start: Model) -> None:
        self.data, self.core, self.modes = data, start.core, start.modes
        self.factors = list(start.factors)
        self.seen = [u if u is None else data.seen(k, u) for k, u in enumerate(start.factors)]
        self.grams = grams_of(start)

    def run(self) -> tuple[Model, float]:
        """The next model, and its relative error."""
        self._descend(self.data.tensor, self.modes)
        grams = [g if g is None else g.to(self.core.dtype) for g in self.grams]
        self.core = core_step(self.core, self.contracted, grams)
        found = Model(self.core, tuple(self.factors))
        return found, error_of(self.data, found, self.contracted, self.grams)

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
            seen = self.seen[k]
            assert seen is not None  # of the modes that have a factor
            partial = mode_product(partial, seen.T, k)
        return partial

    def _update(self, mode: int, partial: Tensor) -> None:
        core, before = unfold(self.core, mode), self.factors[mode]
        assert before is not None  # of the modes that have a factor
        others = [None if k == mode else g for k, g in enumerate(self.grams)]
        wide = self.core.to(torch.float64)
        system = unfold(wide, mode) @ unfold(_times(wide, others), mode).T
        rhs = self.data.grown(mode, unfold(partial, mode) @ core.T)
        rounds = self.data.rounds(*before.shape)
        unit, length = normalise(non_negative(before, rhs, system, rounds), before)
        # A column that no part of the core uses has kept what it was, and so has the core.
        self.factors[mode], self.grams[mode] = unit, gram(unit)
        sizes = [-1 if k == mode else 1 for k in range(self.core.ndim)]
        self.core = self.core * length.to(core.dtype).reshape(sizes)
        self.seen[mode] = seen = self.data.seen(mode, unit)
        self.contracted = mode_product(partial, seen.T, mode)


def grams_of(model: Model) -> list[Tensor | None]:
    return [u if u is None else gram(u) for u in model.factors]


def error_of(data: Data, model: Model, contracted: Tensor, grams: Sequence[Tensor | None]) -> float:
    """Relative, of a model, with the tensor contracted with its factors, and their Grams."""
    wide = model.core.to(torch.float64)
    inner = float((wide * contracted).sum())
    square = data.square - 2 * inner + float((wide * _times(wide, grams)).sum())
    if data.tells(square):
        return ratio(max(square, 0.0), data.square)
    return true_error(data, model)


def core_step(old: Tensor, rhs: Tensor, grams: Sequence[Tensor | None]) -> Tensor:
    """From G = `old` towards the G >= 0 of least <G, G x_k S_k> / 2 - <R, G>: projected gradients
    with momentum (Nesterov 1983), which begins anew where it leads uphill (O'Donoghue & Candes
    2015). `old` itself, or a step of plain descent, where that did not lower it."""
    step = 1 / max(
        reduce(mul, [float(torch.linalg.matrix_norm(g, 2)) for g in grams if g is not None]), 1e-30
    )

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
    first, others = model.factors[0], model.factors[1:]
    flat, tensor = _times(model.core, [None, *others]).flatten(1), data.tensor.flatten(1)
    rows = max(1, _BLOCK // tensor.shape[1])
    if first is None:
        pairs = zip(torch.split(tensor, rows), torch.split(flat, rows), strict=True)
        squares = [sum_of_squares(x - y) for x, y in pairs]
    else:
        parts = zip(torch.split(tensor, rows), torch.split(first, rows), strict=True)
        squares = [sum_of_squares(torch.addmm(x, u, flat, alpha=-1)) for x, u in parts]
    return ratio(reduce(torch.add, squares), data.square)


def ahead(here: Model, last: Model, reach: float) -> Model:
    """Beyond `here` as seen from `last`, without what would be negative."""
    core = beyond([here.core], [last.core], reach)[0].clamp_min_(0.0)
    units: list[Tensor | None] = []
    for mode, (new, old) in enumerate(zip(here.factors, last.factors, strict=True)):
        if new is None or old is None:
            units.append(None)
            continue
        unit, length = normalise(beyond([new], [old], reach)[0].clamp_min_(0.0), new)
        sizes = [-1 if k == mode else 1 for k in range(core.ndim)]
        core = core * length.to(core.dtype).reshape(sizes)
        units.append(unit)
    return Model(core, tuple(units))


def start_from(data: Data, factors: Sequence[Tensor | None]) -> Descent[Model] | None:
    """From these, with a core in proportion to what they see; None where they see nothing."""
    seen = _times(
        data.tensor, [u if u is None else data.seen(k, u).T for k, u in enumerate(factors)]
    )
    core = seen.clamp_min(0.0)
    grams = grams_of(Model(core, tuple(factors)))
    square = float(
        (core * _times(core, [g if g is None else g.to(core.dtype) for g in grams])).sum()
    )
    share = float((core * seen).sum()) / square if square > 0 else 0.0
    if share == 0.0:
        return None
    model = Model(core * share, tuple(factors))
    return Descent.at(model, error_of(data, model, seen, grams))


def random_factors(
    data: Data, ranks: Sequence[int], modes: Sequence[int], draws: torch.Generator
) -> list[Tensor | None]:
    """Uniform, at unit length."""
    like = data.tensor
    found: list[Tensor | None] = []
    for k, (n, r) in enumerate(zip(data.shape, ranks, strict=True)):
        if k not in modes:
            found.append(None)
            continue
        u = torch.rand(n, r, generator=draws, device=like.device, dtype=like.dtype)
        found.append(u / torch.linalg.vector_norm(u, dim=0))
    return found


def svd_factors(
    data: Data, ranks: Sequence[int], modes: Sequence[int], draws: torch.Generator
) -> list[Tensor | None]:
    """From singular vectors of every mode."""
    columns = leading_columns(data, ranks, draws)
    return [u if k in modes else None for k, u in enumerate(columns)]


def corner(data: Data, ranks: Sequence[int], modes: Sequence[int]) -> Descent[Model]:
    """The entries of the slices with the largest ones, as they are where they are positive: a
    model at least as near as zero, and at full rank the nearest."""
    core, factors = data.tensor, list[Tensor | None]()
    for k, r in enumerate(ranks):
        if k not in modes:
            factors.append(None)
            continue
        n = core.shape[k]
        rows = data.tensor.movedim(k, 0).flatten(1).amax(1).topk(r).indices.sort().values
        core = core.index_select(k, rows)
        factors.append(torch.nn.functional.one_hot(rows, n).T.to(core.dtype))
    model = Model(core.clamp_min(0.0), tuple(factors))
    return Descent.at(model, true_error(data, model))


def _times(core: Tensor, grams: Sequence[Tensor | None]) -> Tensor:
    for k, g in enumerate(grams):
        if g is not None:
            core = mode_product(core, g, k)
    return core
