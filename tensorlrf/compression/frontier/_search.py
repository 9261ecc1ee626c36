"""The smallest model that falls by no more than is allowed, found with few evaluations.

Plans of falling size stand on a ladder. The drop rises down the ladder much as a power of the
predicted loss does, so that two rungs that were judged tell about where the limit is, and the
bracket of one that passes and one that does not narrows faster than by halves (after the ITP method
of Oliveira & Takahashi 2020: interpolate, but never far from the middle).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from tensorlrf.compression.frontier._judge import Drop

FROM, TO, STEP = 0.975, 0.03, 0.975
"""Shares of the ladder: each rung keeps so much of the one before."""

EXPONENTS = (0.25, 4.0)
"""Least and largest of the power."""


def ladder() -> list[float]:
    """Falling shares."""
    count = math.floor(math.log(TO / FROM) / math.log(STEP)) + 1
    return [FROM * STEP**k for k in range(count)]


@dataclass
class Bracket:
    """Rungs that were judged, against a limit.

    predicted  of a rung, rising down the ladder, the loss that is predicted
    passes     the lowest rung that did, -1 if none
    fails      the highest rung below it that did not; the end of the ladder if none
    power      of the predicted loss that the drop is, until two rungs tell
    """

    limit: float
    predicted: Callable[[int], float]
    fails: int
    passes: int = -1
    power: float = 1.0
    bounds: dict[int, float] = field(default_factory=dict)

    def note(self, rung: int, drop: Drop) -> bool:
        """Take what was found of a rung; whether it passes."""
        self.bounds[rung] = drop.bound
        passed = drop.bound <= self.limit
        if passed:
            self.passes = max(self.passes, rung)
        else:
            self.fails = min(self.fails, rung)
        return passed

    @property
    def done(self) -> bool:
        """Whether nothing lies between."""
        return self.fails - self.passes <= 1

    def next(self, *, safe: bool = False) -> int:
        """The rung between at which the limit is to be expected; with `safe` an eighth of the loss
        below it."""
        low, high = self.passes + 1, self.fails - 1
        wanted = self._wanted(self.limit * (7 / 8 if safe else 1))
        if wanted is None:
            return (low + high) // 2
        rung = self._rung_at(wanted, low, high)
        margin = 0 if safe else (high - low) // 8
        return min(max(rung, low + margin), high - margin)

    def _wanted(self, limit: float) -> float | None:
        """The predicted loss at which the bound would be at the limit; None where nothing tells."""
        known = [
            (p, bound)
            for rung, bound in sorted(self.bounds.items())
            if 0 < bound < math.inf and (p := self.predicted(rung)) > 0
        ]
        if not known or limit <= 0:
            return None
        nearest = sorted(known, key=lambda pair: abs(math.log(pair[1] / limit)))
        loss, bound = nearest[0]
        other = next((pair for pair in nearest[1:] if pair[0] != loss), None)
        if other is not None:
            power = math.log(other[1] / bound) / math.log(other[0] / loss)
            self.power = min(max(power, EXPONENTS[0]), EXPONENTS[1])
        return loss * math.exp(min(max(math.log(limit / bound) / self.power, -50), 50))

    def _rung_at(self, wanted: float, low: int, high: int) -> int:
        """The lowest rung of these whose predicted loss is not above what is wanted."""
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.predicted(middle) <= wanted else (low, middle - 1)
        return low
