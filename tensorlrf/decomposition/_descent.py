"""The loop of all descents: it watches the errors of sweeps, stops, and keeps the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition.shrinkage import LEAST
from tensorlrf.errors import ArgumentError, ConvergenceWarning, warn

SPAN = 4
"""Sweeps whose gains are put together: extrapolated ones are uneven."""

LITTLE = 5e-4
"""What further sweeps may leave to be gained, as a share of the error, where no tol is given."""

NOTHING = 1e-4
"""A gain of a sweep, as a share of the error, after which no more is expected."""

UNFINISHED = 0.02
"""What is left to be gained by sweeps that the default number of them did not allow, from which on
that is said."""

ROUNDING = 1e-12
"""Relative rise of a float64 error that is rounding."""

FALL = -1e-16
"""The same where the error has to fall, be it by rounding."""

F = TypeVar("F", bound=Fit[Any])
S = TypeVar("S")


def check_iteration(n_iter_max: int | None, tol: float | None) -> None:
    """Those of the two that are given: a number of sweeps, one at least, and a share in [0, 1).

    None stands for the default of a decomposition. Raises ArgumentError.
    """
    if n_iter_max is not None and (
        isinstance(n_iter_max, bool) or not isinstance(n_iter_max, int) or n_iter_max < 1
    ):
        raise ArgumentError(f"n_iter_max={n_iter_max!r} must be an int of at least 1")
    if tol is not None and (
        isinstance(tol, bool) or not isinstance(tol, (int, float)) or not 0 <= tol < 1
    ):
        raise ArgumentError(
            f"tol={tol!r} must lie in [0, 1): the share of itself by which the error may still fall"
        )


def remaining(errors: Sequence[float]) -> float:
    """What sweeps have yet to gain, as a share of the last error, if their gains go on falling as
    they did: the tail of a geometric series (Aitken 1926). Inf where that cannot be told."""
    if len(errors) < 2 or not errors[-1] > 0:
        return 0.0
    if len(errors) <= 2 * SPAN:
        return math.inf
    gain, before = errors[-1 - SPAN] - errors[-1], errors[-1 - 2 * SPAN] - errors[-1 - SPAN]
    if gain <= 0:
        return 0.0
    if gain >= before:
        return math.inf
    return gain / errors[-1] * (gain / (before - gain))


def settled(errors: Sequence[float], tol: float | None) -> bool:
    """Whether the last sweep lowered the error by no more than a share `tol` of it; for None,
    whether more sweeps would gain little."""
    gain = errors[-2] - errors[-1]
    if tol is not None:
        return gain <= tol * errors[-1]
    if gain <= NOTHING * errors[-1] or not errors[-1] > 0:
        return True
    # A series of gains that has just begun to fall slowly looks shorter than it is.
    recent = errors[-min(len(errors), 1 + SPAN)] - errors[-1]
    return max(recent / errors[-1], remaining(errors)) <= LITTLE


class StepAhead:
    """How far ahead along its last change an iterate goes before it is swept.

    Alternating least squares goes slowly along curved valleys in nearly one direction (the enhanced
    line search of Rajih, Comon & Harshman 2008 does likewise for CP). The reach is in units of that
    change; it grows while sweeps lower the error, and starts anew where one does not.

    plain      sweeps before the first step
    most       the longest reach, and how much less it is (`back`) after one that was too long
    confirmed  whether a small gain ends the descent only where the sweep began without a step
    """

    def __init__(
        self, plain: int = 3, most: float = 8.0, back: float = 2.0, confirmed: bool = False
    ) -> None:
        self.reach, self.most = 0.0, most
        self._plain, self._back, self._confirmed = plain, back, confirmed
        self._kept = 0

    def kept(self, little: bool = False) -> bool:
        """A sweep has lowered the error, by little or not; whether that is the end."""
        self._kept += 1
        ends = not self._confirmed or (self.reach == 0 and self._kept > self._plain)
        early = little or self._kept < self._plain
        self.reach = 0.0 if early else min(self.most, max(0.5, 1.5 * self.reach))
        self.most *= 1.1
        return little and ends

    def dropped(self) -> None:
        """A sweep from ahead has raised it."""
        self.reach, self.most = 0.0, max(1.0, self.most / self._back)


def beyond(here: Sequence[Tensor], last: Sequence[Tensor], reach: float) -> list[Tensor]:
    """As far ahead of here as `last` is behind, times `reach`."""
    return [new + reach * (new - old) for new, old in zip(here, last, strict=True)]


@dataclass(frozen=True)
class Descent(Generic[S]):
    """Where sweeps have led to, or where they start.

    state      the one of the smallest error
    errors     relative errors at the start and after each sweep that was kept; none is above the
               one before it
    converged  whether it ended because sweeps gain no more
    reason     why it ended, in words
    """

    state: S
    errors: tuple[float, ...]
    converged: bool = False
    reason: str = ""

    @classmethod
    def at(cls, state: S, error: float) -> Descent[S]:
        """Before the first sweep; an error that is no number is above all others."""
        return cls(state, (math.inf if math.isnan(error) else error,))

    @property
    def error(self) -> float:
        """The smallest of them."""
        return self.errors[-1]

    @property
    def sweeps(self) -> int:
        """How many were kept."""
        return len(self.errors) - 1

    def how(self, converged: str) -> str:
        """Why it ended: the words for convergence, or the number of sweeps."""
        return converged if self.converged else f"{self.sweeps} sweeps"


def descend(
    starts: Iterable[Descent[S]],
    sweep: Callable[[S], tuple[S, float]],
    tol: float | None,
    n_iter_max: int,
    *,
    trial: int = 0,
    exact: float = 0.0,
    ahead: Callable[[S, S, float], S] | None = None,
    step: Callable[[], StepAhead] = StepAhead,
    rise: float = 0.0,
    enough: float = -math.inf,
    watch: Callable[[S, float], bool | None] | None = None,
) -> Descent[S]:
    """The best of the starts after a trial, swept until sweeps gain no more.

    starts      taken one by one; one that went some way already goes on from there
    sweep       from a state to the next one and its relative error, changing no state. One that
                raises the error is undone; it is the end, unless it began ahead
    tol         the end is where a sweep lowers the error by no more than this share of it, for None
                where more would gain little
    n_iter_max  most sweeps of a start, those of its trial among them
    trial       sweeps of each start; the one that is best then goes on
    exact       error of a trial at which no other start is tried
    ahead       (state, the one before, reach) to the state that lies beyond: where it is given,
                sweeps begin ahead, by the rule of `step`
    rise        relative rise of the error that is rounding, so that the sweep is kept; below zero,
                the fall that it takes to be kept
    enough      error at which no further sweep is made
    watch       sees the state and its error after each sweep that is kept, and ends the descent by
                returning True
    """

    def swept(begun: Descent[S], sweeps: int) -> Descent[S]:
        """After so many sweeps at most; without a reason where they ran out."""
        if begun.converged:
            return begun
        last = state = begun.state
        errors, pace = list(begun.errors), step()
        since = begun.sweeps  # gains before a new beginning and after it are no one series

        def ended(converged: bool, reason: str) -> Descent[S]:
            return Descent(state, tuple(accumulate(errors, min)), converged, reason)

        for _ in range(sweeps):
            if errors[-1] <= enough:
                return ended(True, f"the error is at most {enough:.3g}")
            reach = pace.reach if ahead else 0.0
            tried, error = sweep(ahead(state, last, reach) if ahead and reach else state)
            number = len(errors)
            if not error <= errors[-1] * (1 + rise):
                if not reach:
                    reason = "met rounding" if error < math.inf else f"led to an error of {error}"
                    return ended(error < math.inf, f"sweep {number} {reason}")
                pace.dropped()
                continue
            last, state = state, tried
            errors.append(error)
            if watch is not None and watch(state, error):
                return ended(False, f"stopped by callback after sweep {number}")
            if pace.kept(settled(errors[since:], tol)):
                return ended(True, f"sweep {number} lowered the error by less than tol")
        return ended(False, "")

    runs: list[Descent[S]] = []
    for start in starts:
        runs.append(swept(start, trial))
        if runs[-1].error <= exact:
            break
    best = min(runs, key=lambda run: run.error)
    best = best if best.reason else swept(best, n_iter_max - trial)
    return replace(best, reason=best.reason or f"n_iter_max={n_iter_max} sweeps")


def descend_ahead(
    starts: Iterable[Descent[S]],
    sweep: Callable[[S], tuple[S, float]],
    tol: float | None,
    n_iter_max: int,
    ahead: Callable[[S, S, float], S],
    *,
    trial: int = 0,
    enough: float = 16 * torch.finfo(torch.float64).eps,
    watch: Callable[[S, float], bool | None] | None = None,
) -> Descent[S]:
    """`descend` by sweeps that begin ahead, in float64, and end where a plain one confirms it."""
    return descend(
        starts,
        sweep,
        tol,
        n_iter_max,
        trial=min(trial, n_iter_max),
        ahead=ahead,
        step=lambda: StepAhead(confirmed=True),
        rise=ROUNDING,
        enough=enough,
        watch=watch,
    )


def watch_of(
    callback: Callable[[Any, float], bool | None] | None, cast: Callable[[S], Any]
) -> Callable[[S, float], bool] | None:
    """What calls a user's callback with the factors that a state is cast to."""
    if callback is None:
        return None
    return lambda state, error: bool(callback(cast(state), error))


def finished(fit: F, n_iter_max: int | None) -> F:
    """`fit`; warns where the default number of sweeps (`n_iter_max` None) leaves much to gain."""
    course = fit.errors[:-1]
    # A fit of few sweeps has not converged for another reason, such as an error that was asked for.
    long, left = len(course) > 2 * SPAN, remaining(course)
    # Errors below that are of what the inputs do not span, by the share that it was given.
    told = fit.error > max(LEAST, (fit.shrinkage or 0.0) ** 0.5)
    if n_iter_max is None and long and told and not fit.converged and left > UNFINISHED:
        much = f"about {left:.0%} of the error" if left < 1 else "much"
        warn(
            f"sweeps in the metric of gram= have {much} still to gain after {len(fit.errors) - 2}; "
            "give more with n_iter_max=",
            ConvergenceWarning,
        )
    return fit
