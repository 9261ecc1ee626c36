"""CP of a tensor of which some entries are not known, or count by weights (Tomasi & Bro 2005)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition.cp._als import RIDGE_FLOOR, sweeps_of, unit_of
from tensorlrf.decomposition.cp._options import Options
from tensorlrf.decomposition.cp._problem import as_factors
from tensorlrf.decomposition.cp._start import given_start, matrix_start, random_start, svd_start
from tensorlrf.decomposition.cp._state import CPState
from tensorlrf.decomposition.cp.observed._small import small_model, small_sweep
from tensorlrf.decomposition.linalg.multilinear._mttkrp import CutTensor
from tensorlrf.decomposition.linalg.observed._complete import (
    EM,
    WIDEST,
    Posed,
    complete,
    within,
)
from tensorlrf.decomposition.linalg.observed._observed import Observed
from tensorlrf.decomposition.linalg.observed._rows import RIDGE, TINY, pairs, places, solved_rows
from tensorlrf.decomposition.rank import cp_rank
from tensorlrf.factors import CPFactors
from tensorlrf.factors.algebra import khatri_rao

SMALL = 1 << 14
"""Entries of a tensor up to which numpy sweeps."""


def fit_observed(
    seen: Observed,
    rank: int | None,
    error: float | None,
    options: Options,
    n_iter_max: int | None,
    tol: float | None,
    rng: torch.Generator,
) -> Fit[CPFactors]:
    """CP of what is observed, of a rank or within an error."""
    seen.check_slices()
    shape = seen.shape

    def unknowns(r: int) -> int:
        return int(r * (sum(shape) - len(shape) + 1))

    def at(r: int) -> Fit[CPFactors]:
        seen.warn_unless_enough(unknowns(r), r)
        completing = CPCompletion(seen, r, options)
        posed = Posed(seen, completing, completing.starts(rng))
        return complete(seen, posed, n_iter_max=n_iter_max, tol=tol, callback=options.callback)

    if rank is not None:
        return at(rank)
    return within(seen, at, unknowns, error or 0.0, seen.data.numel() // max(shape))


def pose_observed(seen: Observed, rank: Any, draws: torch.Generator) -> Posed[CPState, CPFactors]:
    """CP of a rank from the leading singular vectors."""
    r = cp_rank(rank, seen.shape)
    options = Options(1, "svd", 0.0, "als", None, 1, frozenset(), None)
    completing = CPCompletion(seen, r, options)
    return Posed(seen, completing, completing.starts(draws))


class CPCompletion:
    """Alternating least squares over the entries that are known, or EM-ALS."""

    def __init__(self, seen: Observed, rank: int, options: Options) -> None:
        self.rank, self.options = rank, options
        self.scale, self.dtype, self.order = seen.scale, seen.dtype, len(seen.shape)
        self.spread, self.unit = seen.spread, unit_of(seen.energy**0.5)
        self.seen = seen
        self.sweep = self._by_em if options.solver == EM or rank > WIDEST else self._by_als

    def starts(self, rng: torch.Generator) -> Iterator[CPState]:
        """As many as are asked for, those of words but the first at random."""
        options, rank = self.options, self.rank
        if not isinstance(options.init, str):
            given = options.init
            state = given_start(given.weights, given.factors, self.spread, options.fixed, rng)
            multiple = self.seen.best_multiple(self.model(state))
            yield replace(state, weights=state.weights * multiple)
            return
        if self.order == 2:
            yield matrix_start(self.spread, rank)
            return
        first = svd_start if options.init == "svd" else random_start
        for make in (first, *[random_start] * (options.restarts - 1)):
            yield make(self.spread, rank, 1, rng)

    def model(self, state: CPState) -> Tensor:
        if _is_small(self.seen):
            columns = [u[:, 0].numpy() for u in state.factors]
            return torch.from_numpy(small_model(columns, state.weights[0].numpy()))
        first, *others = (u[:, 0] for u in state.factors)
        scaled = first * state.weights[0].to(first.dtype)
        shape = [u.shape[0] for u in state.factors]
        return (scaled @ khatri_rao(tuple(others)).T).reshape(shape)

    def beyond(self, state: CPState, last: CPState, reach: float) -> CPState:
        factors = [
            u if k in self.options.fixed else u + reach * (u - v)
            for k, (u, v) in enumerate(zip(state.factors, last.factors, strict=True))
        ]
        weights = state.weights + reach * (state.weights - last.weights)
        return CPState(tuple(factors), weights)  # columns near unit length are near enough

    def factors(self, state: CPState) -> CPFactors:
        given = self.options.init
        kept = {}
        if not isinstance(given, str):
            like = state.factors[0]
            kept = {k: given.factors[k].to(like.device, self.dtype) for k in self.options.fixed}
        return as_factors(state, self.scale, self.dtype, tuple(range(self.order)), kept)

    def _by_em(self, seen: Observed, state: CPState) -> CPState:
        """A sweep of ALS on the tensor with its hidden entries as the model has them."""
        filled = CutTensor.of(seen.filled(self.model(state)))
        ridge = RIDGE_FLOOR[seen.data.dtype]
        with torch.inference_mode(False):
            return sweeps_of(filled, state, self.options.fixed, self.unit).run([ridge]).state()

    def _by_als(self, seen: Observed, state: CPState) -> CPState:
        """Of each factor the rows that are best for the entries seen in their slices.

        The weights are contracted with products of columns two by two as the tensor is with
        columns: both along the modes behind one are contracted once a sweep.
        """
        columns = [u[:, 0] for u in state.factors]
        weights = state.weights
        ridge = RIDGE[seen.data.dtype]
        if _is_small(seen):
            arrays, sizes = small_sweep(
                seen.weights.numpy(),
                seen.weighted.numpy(),
                [u.numpy() for u in columns],
                weights[0].numpy(),
                self.options.fixed,
                ridge,
            )
            factors = tuple(torch.from_numpy(u)[:, None] for u in arrays)
            return CPState(factors, torch.from_numpy(sizes)[None])
        by_pairs = [pairs(u) for u in columns]
        grams = Contracted(seen.weights, by_pairs)
        products = Contracted(seen.weighted, columns)
        place = places(self.rank, seen.data.device)
        for k, u in enumerate(columns):
            if k in self.options.fixed:
                continue
            system = grams.along(k)  # (n_k, r (r + 1) / 2)
            old = u.double() * weights
            rows = solved_rows(_systems(system, place), products.along(k), old, ridge)
            weights = torch.linalg.vector_norm(rows, dim=0, keepdim=True)
            columns[k] = (rows / weights.clamp_min(TINY)).to(u.dtype)
            by_pairs[k] = pairs(columns[k])
        return CPState(tuple(u[:, None] for u in columns), weights)


def _is_small(seen: Observed) -> bool:
    data = seen.data
    return data.numel() <= SMALL and data.dtype == torch.float64 and data.is_cpu


def _systems(system: Tensor, place: Tensor) -> Callable[[slice], Tensor]:
    return lambda rows: system[rows].double()[:, place]


class Contracted:
    """A tensor contracted, column by column, with those of all modes but one.

    `columns` (n_k, q) of each mode; of modes before the one that is asked for they are read then,
    of those behind it at the beginning.
    """

    def __init__(self, tensor: Tensor, columns: Sequence[Tensor]) -> None:
        self.tensor, self.columns = tensor, columns
        part = tensor.reshape(-1, tensor.shape[-1]) @ columns[-1]
        self.behind = [part]  # of the last mode but one, and of those before it
        for u in reversed(columns[1:-1]):
            part = (part.view(-1, *u.shape) * u).sum(1)
            self.behind.append(part)

    def along(self, mode: int) -> Tensor:
        """(n_mode, q)."""
        last = len(self.columns) - 1
        front = khatri_rao(tuple(self.columns[:mode])) if mode else None  # (L, q)
        n = self.tensor.shape[mode]
        if mode == last:
            assert front is not None
            return self.tensor.reshape(-1, n).T @ front
        part = self.behind[last - 1 - mode].view(-1, n, self.columns[0].shape[1])
        return part[0] if front is None else (part * front[:, None]).sum(0)
