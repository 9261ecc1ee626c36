"""When sweeps have come to their end, and how far ahead of the last one the next may begin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._shrinkage import LEAST
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

F = TypeVar("F", bound=Fit[Any])


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
    """

    def __init__(self, plain: int = 3, most: float = 8.0) -> None:
        self.reach, self.most, self._plain = 0.0, most, plain

    def kept(self) -> None:
        """A sweep has lowered the error."""
        self._plain -= 1
        self.reach = 0.0 if self._plain > 0 else min(self.most, max(0.5, 1.5 * self.reach))
        self.most *= 1.1

    def dropped(self) -> None:
        """A sweep from ahead has raised it."""
        self.reach, self.most = 0.0, max(1.0, self.most / 2)


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
