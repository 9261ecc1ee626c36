"""The course of all completions: sweeps over what is observed, until they gain no more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import Descent, StepAhead, descend
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._search import smallest_within
from tensorlrf.decomposition.linalg.observed._observed import Observed
from tensorlrf.errors import ArgumentError, TensorlrfWarning, warn
from tensorlrf.factors import Factors

SWEEPS = 500
"""At most, unless told otherwise."""

WIDEST = 64
"""Unknowns of a slice up to which their systems are made: q^2 / 2 columns are contracted with the
weights for these, where imputing takes a few q."""

EM = "em"
"""The solver that imputes what is hidden, one factor after the other as if all were known."""

S = TypeVar("S")
F = TypeVar("F", bound=Factors)
G = TypeVar("G", bound=Factors, covariant=True)

Watch = Callable[[Any, float], Any]


class Completing(Protocol[S, G]):
    """A format that is fitted to observed entries; states are never changed."""

    def sweep(self, seen: Observed, state: S) -> S:
        """Every block once, each the best for the others."""

    def model(self, state: S) -> Tensor:
        """What it stands for, of the shape of what is observed."""

    def beyond(self, state: S, last: S, reach: float) -> S:
        """As far ahead of a state as the last one is behind, times `reach`."""

    def factors(self, state: S) -> G:
        """In the user's dtype, scale and order of modes."""


class Posed(NamedTuple, Generic[S, G]):
    """A format at a rank, ready to be swept.

    seen    what is observed, as the format works on it
    format  that is fitted
    starts  from which it may begin
    """

    seen: Observed
    format: Completing[S, G]
    starts: Iterable[S]


class Paced(StepAhead):
    """Confirmed, since errors fall in steps: a small gain ends only where nothing was ahead."""

    def __init__(self) -> None:
        super().__init__(confirmed=True)


def complete(
    seen: Observed,
    posed: Posed[S, F],
    *,
    n_iter_max: int | None,
    tol: float | None,
    callback: Watch | None = None,
) -> Fit[F]:
    """The best of the starts, swept on; `seen` as the user has it."""
    most = SWEEPS if n_iter_max is None else n_iter_max
    entries, completing, starts = posed

    def error(state: S) -> float:
        return entries.error(completing.model(state))

    def sweep(state: S) -> tuple[S, float]:
        made = completing.sweep(entries, state)
        return made, error(made)

    def watch(state: S, reached: float) -> bool:
        return callback is not None and bool(callback(completing.factors(state), reached))

    begun = [Descent.at(state, error(state)) for state in starts]
    with torch.no_grad():
        run = descend(
            begun,
            sweep,
            tol,
            most,
            trial=most if len(begun) > 1 else 0,
            ahead=completing.beyond,
            step=Paced,
            enough=4 * float(torch.finfo(entries.data.dtype).eps),
            watch=watch,
        )
    factors = completing.factors(run.state)
    errors = (*run.errors, seen.error_of(factors))
    return Fit(factors, errors, run.converged, run.reason)


def within(
    seen: Observed,
    fit_of_rank: Callable[[int], Fit[F]],
    unknowns: Callable[[int], int],
    error: float,
    limit: int,
) -> Fit[F]:
    """The fit of the smallest rank tried whose error over what is observed is at most `error`.

    unknowns  free parameters at a rank: where these outnumber the entries any error can be met, and
              says nothing; no such rank is tried
    """
    climb, r = [1], 1
    while r < limit and unknowns(min(2 * r, limit)) <= seen.count:
        r = min(2 * r, limit)
        climb.append(r)
    found = smallest_within(fit_of_rank, error, climb)
    rank = found.fit.factors.rank
    if found.within:
        reason = f"rank {rank} is the smallest tried within {error}; {found.fit.reason}"
        return replace(found.fit, converged=True, reason=reason)
    warn(
        f"error={error} is out of reach: rank {rank}, of those tried the largest with no more free "
        f"parameters than the {seen.count} observed entries, leaves {found.fit.error:.3g}; ask for "
        "more, or give rank=",
        TensorlrfWarning,
    )
    return replace(found.fit, converged=False, reason=f"more than error={error} is left")


def plain_solver(solver: str, known: Sequence[str], served: Sequence[str], given: bool) -> str:
    """What does the same as `solver` where every entry is known.

    known   the solvers of the decomposition
    served  those of them that complete, the usual one first
    given   whether mask= or weights= are

    Raises ArgumentError for "em" without these, and with them for a solver that completes nothing.
    """
    if solver == EM:
        if not given:
            raise ArgumentError(
                f"solver={EM!r} imputes what is hidden, so that it goes with mask= or weights=; "
                "give one of these, or leave it out"
            )
        return served[0]
    if given and solver in known and solver not in served:
        raise ArgumentError(
            f"solver={solver!r} reads every entry; with mask= or weights= choose one of "
            f"{', '.join((*served, EM))}"
        )
    return solver


def check_sweeps(given: bool, **sweeps: Any) -> None:
    """Raise ArgumentError for what is of sweeps over observed entries (n_iter_max=, tol=,
    callback=), where neither mask= nor weights= is `given`."""
    for name, value in sweeps.items():
        if value is not None and not given:
            raise ArgumentError(
                f"{name}={value!r} goes with mask= or weights=, of which neither is given; without "
                "these there is nothing to iterate, leave it out"
            )
