"""How much faster one of two is, by pairs of times, and whether that can be told from noise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95
"""Of an interval, two-sided."""

LEAST_PAIRS = 6
"""With fewer the least and the largest ratio are no interval of this level."""


@dataclass(frozen=True)
class Ratio:
    """Of the times of two in turn, of the second over the first: above 1 the first is faster.

    Parameters
    ----------
    median : float
        Of the ratios of pairs, which a drift of the machine meets alike.
    low, high : float or None
        The 95% interval of that median, whatever the ratios are distributed like: order statistics.
        None of fewer than six pairs.
    pairs : int

    References
    ----------
    Thompson 1936 (the interval).

    Examples
    --------
    >>> ratio = tensorlrf.compression.Ratio(1.3, 1.1, 1.5, 9)
    >>> print(ratio)
    1.30x faster (1.10 to 1.50)
    >>> tensorlrf.compression.Ratio(1.3, 0.9, 1.5, 9).verdict
    'no difference shown'
    """

    median: float
    low: float | None
    high: float | None
    pairs: int

    @classmethod
    def of(cls, first: Sequence[float], second: Sequence[float]) -> Ratio:
        """Of samples of the same rounds, in seconds.

        Parameters
        ----------
        first, second : sequence of float
            As many of each.
        """
        ratios = sorted(b / a for a, b in zip(first, second, strict=True))
        n = len(ratios)
        low = high = None
        if n >= LEAST_PAIRS:
            k = _outside(n)
            low, high = ratios[k], ratios[n - 1 - k]
        return cls(statistics.median(ratios), low, high, n)

    @property
    def verdict(self) -> str:
        """Faster, or slower, where the interval lies on one side of 1; else what is missing."""
        if self.low is None or self.high is None:
            return "too few pairs to tell"
        if self.low > 1:
            return "faster"
        return "slower" if self.high < 1 else "no difference shown"

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.median:.2f}x, {self.verdict}"
        if self.verdict == "slower":
            span = f"({1 / self.high:.2f} to {1 / self.low:.2f})"
            return f"{1 / self.median:.2f}x slower {span}"
        span = f"({self.low:.2f} to {self.high:.2f})"
        if self.verdict == "faster":
            return f"{self.median:.2f}x faster {span}"
        return f"{self.median:.2f}x {span}, {self.verdict}"


def _outside(n: int) -> int:
    """How many of n ordered values to leave out at either end: the median lies beyond with a
    probability of (1 - level) / 2 at the most, each value being above it or not like a coin."""
    below, k = 0.0, 0
    while True:
        below += math.comb(n, k) * 0.5**n
        if below > (1 - LEVEL) / 2:
            return max(0, k - 1)
        k += 1
