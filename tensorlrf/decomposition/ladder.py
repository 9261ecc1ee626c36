"""The ranks that a weight could take, with the parameters that each would cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count, takewhile

MULTIPLE = 8

LayerRank = int | tuple[int, ...]


@dataclass(frozen=True)
class Rung:
    """A rank and the parameters of the factors that have it.

    of     the word of another method, where these factors are of its form, and the rank its
    own    and the rank with which the method itself gives them then
    """

    rank: LayerRank
    params: int
    of: str | None = field(default=None, repr=False, compare=False)
    own: LayerRank | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Ladder:
    """The ranks at which a weight of `dense` parameters becomes smaller, cheapest first."""

    dense: int
    rungs: tuple[Rung, ...]

    @classmethod
    def of(cls, dense: int, rungs: list[Rung]) -> Ladder:
        """Of rungs in the order of their ranks, those that no later one undercuts."""
        kept: list[Rung] = []
        for rung in reversed(rungs):
            if rung.params < (kept[-1].params if kept else dense):
                kept.append(rung)
        return cls(dense, tuple(reversed(kept)))

    @classmethod
    def up(cls, dense: int, params: Callable[[int], int]) -> Ladder:
        """Of the ranks 1, 2, ..., 7, 8, 16, 24, ... with so many parameters, which rise."""
        rungs = (Rung(rank, params(rank)) for rank in multiples())
        return cls(dense, tuple(takewhile(lambda rung: rung.params < dense, rungs)))

    def within(self, share: float) -> Rung | None:
        """The highest rung of at most this share of the parameters; None where there is none."""
        most = share * self.dense * (1 + 1e-12)
        return max(
            (r for r in self.rungs if r.params <= most), key=lambda r: r.params, default=None
        )

    def times(self, groups: int) -> Ladder:
        """Of so many weights that all take the same rung."""
        if groups == 1:
            return self
        rungs = tuple(replace(r, params=r.params * groups) for r in self.rungs)
        return Ladder(self.dense * groups, rungs)


def matrix_ladder(m: int, n: int) -> Ladder:
    """Low rank: r (m + n) parameters for m n."""
    return Ladder.up(m * n, lambda r: r * (m + n))


def multiples() -> Iterator[int]:
    """1, 2, ..., 7, 8, 16, 24, ... without end."""
    yield from range(1, MULTIPLE)
    yield from count(MULTIPLE, MULTIPLE)


def rounded(rank: float) -> int:
    """Down to a multiple of 8; below 8, where there is none, to a whole number."""
    whole = math.floor(rank * (1 + 1e-12))  # a fraction of n that is meant to be whole
    return whole // MULTIPLE * MULTIPLE if whole >= MULTIPLE else whole
