"""Sweeps of a ring, with steps ahead along the way they go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from tensorlrf.decomposition._descent import settled
from tensorlrf.decomposition.trains._tr_als import balanced, ridge_at

ROUNDING = 1e-12
"""By how much, relative, a sweep may seem to raise the error."""

PLAIN = 4
"""Sweeps before the first step ahead."""

REACH, GROWTH, MOST = 0.5, 1.5, 4.0
"""The first step ahead in units of the last sweep's change, how it grows, and up to what."""


class Swept(Protocol):
    """What sweeps lower."""

    def rel_error(self, cores: Sequence[Tensor]) -> float:
        """Of a ring."""

    def sweep(self, cores: Sequence[Tensor], ridge: float) -> tuple[list[Tensor], float]:
        """The ring after one sweep, and its relative error."""


def iterate(
    problem: Swept, cores: Sequence[Tensor], n_iter_max: int, tol: float | None
) -> tuple[list[Tensor], list[float], bool]:
    """Sweeps until one gains less than `tol`, for None until more would gain little; the ring, the
    errors on the way, which never rise, and whether it came to that.

    Alternating least squares goes slowly along curved valleys in nearly one direction, so a sweep
    begins ahead of where the last one ended (as the enhanced line search of Rajih, Comon &
    Harshman 2008 does for CP). One that ends higher for it is dropped.
    """
    best = last = balanced(cores)
    errors = [problem.rel_error(best)]
    reach, most = 0.0, MOST
    for sweep in range(n_iter_max):
        start = [new + reach * (new - old) for new, old in zip(best, last, strict=True)]
        tried, error = problem.sweep(start, ridge_at(sweep))
        if error > errors[-1] * (1 + ROUNDING):
            if reach == 0.0:
                # Rounding is all that is left.
                return best, errors, True
            reach, last, most = 0.0, best, max(1.0, most / 4)
            continue
        last, best = best, tried
        errors.append(error)
        small = settled(errors, tol)
        if small and reach == 0.0 and sweep >= PLAIN:
            return best, errors, True
        reach = 0.0 if small or sweep < PLAIN - 1 else min(most, max(REACH, GROWTH * reach))
        most *= 1.1
    return best, errors, False
