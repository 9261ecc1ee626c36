"""Sweeps of a ring, with steps ahead along the way they go."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import count
from typing import Protocol

from torch import Tensor

from tensorlrf.decomposition._descent import ROUNDING, Descent, StepAhead, beyond, descend
from tensorlrf.decomposition.trains._tr_als import balanced, ridge_at

STEP = partial(StepAhead, plain=4, most=4.0, back=4.0, confirmed=True)
"""Shorter than elsewhere, and a small gain from ahead is confirmed by a sweep from where it led."""


class Swept(Protocol):
    """What sweeps lower."""

    def rel_error(self, cores: Sequence[Tensor]) -> float:
        """Of a ring."""

    def sweep(self, cores: Sequence[Tensor], ridge: float) -> tuple[list[Tensor], float]:
        """The ring after one sweep, and its relative error."""


def iterate(
    problem: Swept, cores: Sequence[Tensor], n_iter_max: int, tol: float | None
) -> Descent[list[Tensor]]:
    """Sweeps until one gains less than `tol`, for None until more would gain little; the proximal
    term falls with the number of a sweep."""
    ridges = map(ridge_at, count())
    ring = balanced(cores)
    return descend(
        [Descent.at(ring, problem.rel_error(ring))],
        lambda ring: problem.sweep(ring, next(ridges)),
        tol,
        n_iter_max,
        ahead=beyond,
        step=STEP,
        rise=ROUNDING,
    )
