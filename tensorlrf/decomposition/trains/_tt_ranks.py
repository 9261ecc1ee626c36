"""From what a user calls a rank to the ranks of a tensor train."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from operator import mul
from typing import TypeVar

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._search import doubled, smallest_within
from tensorlrf.decomposition.rank import Rank, _one_int, _share, ints
from tensorlrf.errors import RankError
from tensorlrf.factors import Factors

F = TypeVar("F", bound=Factors)


def rank_limits(sizes: Sequence[int]) -> tuple[int, ...]:
    """The largest rank of each of the N - 1 bonds: the short side of its unfolding."""
    left = list(accumulate(sizes, mul))[:-1]
    right = list(accumulate(reversed(sizes), mul))[-2::-1]
    return tuple(min(a, b) for a, b in zip(left, right, strict=True))


def train_params(sizes: Sequence[int], ranks: Sequence[int]) -> int:
    """Parameters of a train with the N - 1 inner `ranks`."""
    bonds = (1, *ranks, 1)
    return sum(n * r * s for n, (r, s) in zip(sizes, pairwise(bonds), strict=True))


def train_ranks(rank: Rank, sizes: Sequence[int], dense: int) -> tuple[int, ...]:
    """The N - 1 inner ranks of a train with modes of `sizes`.

    An int serves every bond, clipped to what the bond can have; a share is the largest such int
    whose parameters are at most that part of `dense`; a tuple names the inner ranks, with or
    without the ones at both ends, and may not be above what the sizes and its neighbours allow.
    """
    limits = rank_limits(sizes)
    share = _share(rank)
    if share is not None:
        return clipped(_uniform_share(share * dense, sizes, limits), limits)
    if not isinstance(rank, Sequence) or isinstance(rank, str):
        return clipped(_one_int(rank), limits)
    ranks = ints(rank)
    if len(ranks) == len(sizes) + 1:
        if ranks[0] != 1 or ranks[-1] != 1:
            raise RankError(
                f"rank={ranks} begins with {ranks[0]} and ends with {ranks[-1]}; the boundary "
                "ranks of a train are 1, a ring (`tr`) joins its ends"
            )
        ranks = ranks[1:-1]
    elif len(ranks) != len(limits):
        raise RankError(
            f"rank={ranks} has {len(ranks)} entries for a train of {len(sizes)} cores; give the "
            f"{len(limits)} inner ranks, or {len(sizes) + 1} with a 1 at both ends"
        )
    _check(ranks, sizes, limits)
    return ranks


def smallest_uniform(
    fit: Callable[[tuple[int, ...]], Fit[F]], limits: Sequence[int], error: float
) -> Fit[F]:
    """The smallest rank of all bonds, of those tried, that keeps `error`; less at a bond whose
    limit is below it."""
    climb = doubled(max(limits, default=1))
    found = smallest_within(lambda r: fit(clipped(r, limits)), error, climb)
    if not found.within:
        reason = f"full rank leaves more than {error}"
        return replace(found.fit, converged=False, reason=reason)
    reason = f"uniform rank {found.rank} is the smallest tried within {error}; {found.fit.reason}"
    return replace(found.fit, converged=True, reason=reason)


def clipped(rank: int, limits: Sequence[int]) -> tuple[int, ...]:
    """One rank for all bonds, as far as each can have it."""
    return tuple(min(rank, limit) for limit in limits)


def _check(ranks: Sequence[int], sizes: Sequence[int], limits: Sequence[int]) -> None:
    bonds = (1, *ranks, 1)
    for k, limit in enumerate(limits, start=1):
        near = min(limit, bonds[k - 1] * sizes[k - 1], bonds[k + 1] * sizes[k])
        if bonds[k] > near:
            why = "the short side of the unfolding" if near == limit else "by its neighbours"
            raise RankError(
                f"rank={tuple(ranks)} asks for rank {bonds[k]} between cores {k - 1} and {k}; "
                f"use at most {near}, {why} (limits by the sizes: {tuple(limits)})"
            )


def _uniform_share(budget: float, sizes: Sequence[int], limits: Sequence[int]) -> int:
    low, high = 1, max(limits, default=1)
    while low < high:
        middle = (low + high + 1) // 2
        if train_params(sizes, clipped(middle, limits)) <= budget:
            low = middle
        else:
            high = middle - 1
    return max(1, math.floor(low))
