"""Sweeps of hierarchical alternating least squares over the modes of a non-negative CP model, of
which NMF is that of a matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import mul

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import Descent, beyond
from tensorlrf.decomposition.linalg.multilinear._columns import normalise
from tensorlrf.decomposition.linalg.multilinear._tree import TorchTree
from tensorlrf.decomposition.nonnegative._data import Columns, Data, gram, inner_products
from tensorlrf.decomposition.nonnegative._hals import non_negative
from tensorlrf.decomposition.nonnegative._leading import leading_columns


class Sweep(TorchTree):
    """One sweep from a model, which stays as it is. All columns have unit length but those of the
    mode at hand, which have the weights: a column that vanishes keeps its direction with weight
    zero, and can come back."""

    fixed = frozenset[int]()

    def __init__(self, data: Data, start: Columns) -> None:
        self.data, self.tensor, self.cut = data, data.cut, data.cut.cut
        self.factors, self.weights = list(start.factors), start.weights
        self.columns = [data.seen(k, u) for k, u in enumerate(start.factors)]
        self._grams: list[Tensor | None] = [None] * len(self.factors)

    def run(self) -> tuple[Columns, float]:
        """The next model, and its relative error."""
        self._over_modes()
        found = Columns(tuple(self.factors), self.weights)
        return found, self.data.error(self._square, found)

    def _gram(self, mode: int) -> Tensor:
        found = self._grams[mode]
        if found is None:
            found = self._grams[mode] = gram(self.factors[mode])
        return found

    def _update(self, mode: int, rhs: Tensor) -> None:
        system = reduce(mul, [self._gram(k) for k in range(len(self.factors)) if k != mode])
        before, rhs = self.factors[mode], self.data.grown(mode, rhs)
        rounds = self.data.rounds(*before.shape)
        solution = non_negative(before * self.weights.to(before.dtype), rhs, system, rounds)
        unit, self.weights = normalise(solution, before)
        self.factors[mode], self._grams[mode] = unit, gram(unit)
        self.columns[mode] = self.data.seen(mode, unit)
        along = (rhs * solution).sum(dtype=torch.float64)
        model = (system * self._gram(mode) * torch.outer(self.weights, self.weights)).sum()
        self._square = self.data.square + float(model - 2 * along)


def ahead(here: Columns, last: Columns, reach: float) -> Columns:
    """Beyond `here` as seen from `last`, without what would be negative (Ang & Gillis 2019)."""
    lengths, factors = [], []
    for new, moved in zip(here.factors, beyond(here.balanced, last.balanced, reach), strict=True):
        unit, length = normalise(moved.clamp_min_(0.0), new)
        factors.append(unit)
        lengths.append(length)
    return Columns(tuple(factors), reduce(mul, lengths))


def weighted(
    data: Data, factors: tuple[Tensor, ...], weights: Tensor | None = None
) -> Descent[Columns]:
    """A start of columns: nearly the weights that suit them best, none below zero, from the given
    ones in the scale that suits these."""
    along = inner_products(data, factors)
    system = reduce(mul, map(gram, factors))
    begun = torch.zeros_like(along) if weights is None else weights
    square = float((system * torch.outer(begun, begun)).sum())
    if square > 0:
        begun = begun * max(0.0, float((along * begun).sum()) / square)
    weights = non_negative(begun[None], along[None], system)[0]
    model = float((system * torch.outer(weights, weights)).sum() - 2 * (along * weights).sum())
    columns = Columns(factors, weights)
    return Descent.at(columns, data.error(data.square + model, columns))


def random_columns(
    data: Data, rank: int, draws: torch.Generator, starts: int = 1
) -> Iterator[Descent[Columns]]:
    """Starts that are uniform in the unit cube, at unit length."""
    for _ in range(starts):
        start = random_start(data, rank, draws)
        yield start if bool(start.state.weights.any()) else peaks(data, rank)


def random_start(data: Data, rank: int, draws: torch.Generator) -> Descent[Columns]:
    """One of them, whose weights are zero where even terms would have to be negative."""
    factors = drawn(data, rank, draws)
    return weighted(data, tuple(u / torch.linalg.vector_norm(u, dim=0) for u in factors))


def svd_start(data: Data, rank: int, draws: torch.Generator) -> Descent[Columns]:
    """From singular vectors of every mode."""
    return weighted(data, tuple(leading_columns(data, [rank] * len(data.shape), draws)))


def drawn(data: Data, rank: int, draws: torch.Generator) -> list[Tensor]:
    """Uniform factors (n_k, r)."""
    like = data.tensor
    return [
        torch.rand(n, rank, generator=draws, device=like.device, dtype=like.dtype)
        for n in data.shape
    ]


def peaks(data: Data, rank: int) -> Descent[Columns]:
    """A term for each of the largest entries: where even terms would have to be negative, this is
    a model that is nearer than zero."""
    entries = data.tensor.reshape(-1)
    places = entries.topk(min(rank, len(entries))).indices
    places = torch.cat([places, places[:1].expand(rank - len(places))])
    return weighted(data, tuple(_one_hot(places, data.cut.shape, entries)))


def exact_columns(data: Data, rank: int) -> Descent[Columns]:
    """Every fibre of the longest mode as a term: what is left are the negative entries."""
    shape = data.cut.shape
    longest = shape.index(max(shape))
    fibres = data.tensor.movedim(longest, -1).reshape(-1, shape[longest]).clamp_min(0.0)
    places = torch.arange(len(fibres), device=fibres.device)
    factors = _one_hot(places, [n for k, n in enumerate(shape) if k != longest], fibres)
    even = torch.full_like(fibres.T, shape[longest] ** -0.5)
    unit, weights = normalise(fibres.T, even)
    factors.insert(longest, unit)
    more = rank - len(fibres)
    if more > 0:
        factors = [torch.cat([u, u[:, :1].expand(-1, more)], 1) for u in factors]
        weights = torch.cat([weights, weights.new_zeros(more)])
    columns = Columns(tuple(factors), weights)
    return Descent.at(columns, data.true_error(columns.factors, columns.weights))


def _one_hot(places: Tensor, shape: Sequence[int], like: Tensor) -> list[Tensor]:
    """(n_k, len(places)) of each mode: where these places among the entries lie."""
    return [
        torch.nn.functional.one_hot(places // math.prod(shape[k + 1 :]) % n, n).T.to(like.dtype)
        for k, n in enumerate(shape)
    ]
