"""What non-negative decompositions of a dense tensor have in common: options, sweeps, the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import Descent, check_iteration, descend
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import working_dtype
from tensorlrf.decomposition._options import check_callback, check_count
from tensorlrf.decomposition._search import doubled, smallest_within
from tensorlrf.decomposition.linalg._spectrum import ratio
from tensorlrf.decomposition.linalg.multilinear._given import check_given
from tensorlrf.decomposition.nonnegative._compressed import Compressed, compressed
from tensorlrf.decomposition.nonnegative._data import Columns, Data
from tensorlrf.decomposition.nonnegative._sweep import (
    Sweep,
    ahead,
    exact_columns,
    random_columns,
    random_start,
    svd_start,
    weighted,
)
from tensorlrf.errors import ArgumentError, TensorlrfWarning, unknown, warn
from tensorlrf.factors import CPFactors, Factors

SWEEPS = 300
"""By default, at the most."""

INITS = ("random", "svd")

TRIAL = 10
"""Sweeps of each of several starts, of which the best goes on."""

F = TypeVar("F", bound=Factors)
S = TypeVar("S")


@dataclass(frozen=True)
class Options:
    """Of an iteration: most sweeps, when it ends, where it starts, who looks on."""

    n_iter_max: int
    tol: float | None
    init: str | CPFactors
    n_restarts: int
    callback: Callable[[Any, float], Any] | None

    @classmethod
    def checked(
        cls,
        n_iter_max: int | None,
        tol: float | None,
        init: Any,
        n_restarts: int,
        callback: Callable[[Any, float], Any] | None,
        given: Callable[[Any], CPFactors] | None,
    ) -> Options:
        """`given` checks a start that is no word; None where a rank is searched for.

        Raises ArgumentError, ShapeError or RankError.
        """
        check_iteration(n_iter_max, tol)
        check_count("n_restarts", n_restarts, 1)
        check_callback(callback, None)
        if isinstance(init, str):
            if init not in INITS:
                raise unknown("init", init, (*INITS, *(["factors of your own"] if given else [])))
        elif given is None:
            raise ArgumentError("init is given factors, which have a rank; with error= use a word")
        elif n_restarts > 1:
            raise ArgumentError(
                f"n_restarts={n_restarts} with given factors as init would repeat one run; use 1"
            )
        else:
            init = given(init)
        sweeps = SWEEPS if n_iter_max is None else n_iter_max
        return cls(sweeps, tol, init, n_restarts, callback)

    def descend(
        self,
        starts: Iterable[Descent[S]],
        sweep: Callable[[S], tuple[S, float]],
        factors_of: Callable[[S], Factors],
        ahead: Callable[[S, S, float], S] | None = None,
    ) -> Descent[S]:
        """The best of the starts, swept until sweeps gain no more; the callback sees factors."""

        def watch(state: S, error: float) -> bool:
            return self.callback is not None and bool(self.callback(factors_of(state), error))

        trial = min(TRIAL, self.n_iter_max) if self.n_restarts > 1 else 0
        return descend(
            starts, sweep, self.tol, self.n_iter_max, trial=trial, ahead=ahead, enough=0.0,
            watch=watch if self.callback else None,
        )  # fmt: skip


def given_start(init: Any, shape: tuple[int, ...], rank: int) -> CPFactors:
    """A start that the user gave, checked: none of its entries may be negative."""
    found = check_given(init, shape, rank)
    for name, part in found.tensors().items():
        refuse_negative(part, f"init: {name}")
    return found


def refuse_negative(tensor: Tensor, name: str, more: str = "") -> None:
    """Raise ArgumentError that names the first negative entry; `more` is what it says beside."""
    if float(tensor.detach().min()) >= 0:
        return
    at = tuple((tensor.detach() < 0).nonzero()[0].tolist())
    raise ArgumentError(f"{name} is negative at {at}: {float(tensor[at]):.6g}{more}")


def solve(
    data: Data,
    rank: int,
    options: Options,
    draws: torch.Generator,
    factors_of: Callable[[Columns], F],
) -> tuple[F, Descent[Columns]]:
    """The best of the starts after its sweeps, as `factors_of` gives a model to the user, and how
    it went."""

    def sweep(columns: Columns) -> tuple[Columns, float]:
        return Sweep(data, columns).run()

    run = options.descend(starts_of(data, rank, options, draws), sweep, factors_of, ahead)
    return factors_of(run.state), run


def starts_of(
    data: Data, rank: int, options: Options, draws: torch.Generator
) -> Iterable[Descent[Columns]]:
    shape = data.cut.shape
    if isinstance(options.init, str):
        if rank >= data.cut.blocks.numel() // max(shape):
            return [exact_columns(data, rank)]
        svd = options.init == "svd"
        begun = begun_small(data, rank, draws, options.n_restarts, svd)
        if begun is not None:
            return [begun]
        drawn = random_columns(data, rank, draws, options.n_restarts - svd)
        return chain([svd_start(data, rank, draws)] if svd else [], drawn)
    like = data.tensor
    factors = [u.to(like.device, like.dtype) for u in options.init.factors]
    return [weighted(data, *_directions(factors, options.init.weights.to(like.device)))]


def begun_small(
    data: Data, rank: int, draws: torch.Generator, starts: int, svd: bool = False
) -> Descent[Columns] | None:
    """Where sweeps over the tensor in small bases lead to, from the best of the starts; None
    where these bases save too little, or the starts see nothing in them."""
    small = compressed(data, [rank] * len(data.shape), draws)
    if small is None:
        return None
    found = [random_start(small, rank, draws) for _ in range(starts - svd)]
    found = ([svd_start(small, rank, draws)] if svd else []) + found
    found = [start for start in found if bool(start.state.weights.any())]
    if not found:
        return None
    end = end_within(small, found, lambda columns: Sweep(small, columns).run(), ahead)
    return weighted(data, end.factors, end.weights)


def end_within(
    small: Compressed,
    starts: Sequence[Descent[S]],
    sweep: Callable[[S], tuple[S, float]],
    ahead: Callable[[S, S, float], S],
    tol: float | None = None,
) -> S:
    """Where sweeps over a tensor in small bases lead to, from the best of the starts."""
    return descend(
        starts, sweep, tol, SWEEPS, trial=TRIAL if len(starts) > 1 else 0, ahead=ahead,
        enough=small.enough,
    ).state  # fmt: skip


def _directions(factors: Sequence[Tensor], weights: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Columns at unit length, and their weights over the largest; one of zeros becomes an even one,
    which has a direction, of weight zero."""
    units, product = [], weights.to(torch.float64) / float(weights.max().clamp_min(1e-300))
    for u in factors:
        largest = u.amax(0)
        even = torch.where(largest > 0, u / largest.clamp_min(torch.finfo(u.dtype).tiny), 1.0)
        length = torch.linalg.vector_norm(even, dim=0)
        size = torch.where(largest > 0, length.double() * largest.double(), 0.0)
        product = product * size / float(size.max().clamp_min(1e-300))
        units.append(even / length)
    return tuple(units), product


def check_reach(data: Data, error: float) -> None:
    """Raise ArgumentError for an error below what negative entries leave to any model."""
    below = data.tensor.clamp_max(0.0)
    least = ratio(torch.linalg.vector_norm(below, dtype=torch.float64) ** 2, data.square)
    if error < least:
        raise ArgumentError(
            f"error={error} is below {least:.3g}, what the negative entries of tensor leave to "
            "every non-negative model; ask for more, or use cp"
        )


def search_rank(at: Callable[[int], Fit[F]], error: float, most: int, dtype: torch.dtype) -> Fit[F]:
    """A small rank within `error`: ranks are doubled up to `most`, then bisected.

    Warns (TensorlrfWarning) where none is within.
    """
    found = smallest_within(at, error, doubled(most))
    if found.within:
        reason = f"rank {found.rank} is within {error}, one less was not; {found.fit.reason}"
        return replace(found.fit, reason=reason)
    if error >= torch.finfo(working_dtype(dtype)).eps:
        warn(
            f"error={error} is out of reach: rank {found.rank} leaves {found.fit.error:.3g} in "
            f"{dtype}; ask for more, make more sweeps (n_iter_max=), or pass the tensor in float32",
            TensorlrfWarning,
        )
    reason = f"error={error:g} was not met up to rank {found.rank}"
    return replace(found.fit, converged=False, reason=reason)
