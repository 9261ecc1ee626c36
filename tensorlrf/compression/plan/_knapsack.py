"""One option of every layer under one budget: the multiple-choice knapsack problem.

An option has a cost and a loss; the sum of losses is to be least where the sum of costs stays
within the budget. The lower convex hulls of the layers, climbed in the order of what a unit of cost
buys, solve the linear relaxation, and its multiplier gives the bound

    loss >= sum over layers of min (loss + multiplier cost) - multiplier budget.

What climbing leaves over is spent greedily. Where bound and choice still differ, the options that
the bound does not exclude are put together layer by layer, and of partial choices only those are
kept that no other one dominates and the bound allows: an exact answer wherever there are never more
than `MOST_STATES` of them.

References: Sinha & Zoltners 1979; Pisinger 1995; Shoham & Gersho 1988 for the allocation of rates.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tensorlrf.errors import ArgumentError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MOST_STATES = 512
"""Partial choices that are followed side by side."""

CLOSE = 1e-3
"""A choice whose loss is proved to be within this share of the least one is good enough: losses are
predictions."""


@dataclass(frozen=True)
class Options:
    """What a layer, or several that must agree, can become.

    cost, loss   of each option, (n,)
    """

    cost: Floats
    loss: Floats

    @classmethod
    def of(cls, cost: Sequence[float], loss: Sequence[float]) -> Options:
        return cls(np.asarray(cost, np.float64), np.asarray(loss, np.float64))


def knapsack(items: Sequence[Options], budget: float) -> list[int]:
    """The option of every item, so that the costs are at most `budget` together and the losses, up
    to a share of `CLOSE`, as low as can be.

    Raises ArgumentError where even the cheapest options are above the budget.
    """
    least = sum(float(item.cost.min()) for item in items)
    if least > budget:
        raise ArgumentError(
            f"budget={budget:,.0f} is below {least:,.0f}, what the cheapest options cost together"
        )
    choice, multiplier = _climbed(items, budget)
    _spend(items, choice, budget)
    reduced = [item.loss + multiplier * item.cost for item in items]
    bound = sum(float(values.min()) for values in reduced) - multiplier * budget
    loss = _total(items, choice)
    if loss - bound <= CLOSE * max(abs(bound), np.finfo(np.float64).tiny):
        return choice
    better = _put_together(items, reduced, budget, multiplier, loss)
    return choice if better is None else better


def _climbed(items: Sequence[Options], budget: float) -> tuple[list[int], float]:
    """(the hull options of the relaxation, rounded down, its multiplier)."""
    hulls = [_hull(item) for item in items]
    choice = [int(hull[0]) for hull in hulls]
    steps = [  # (what a unit of cost buys, item, option reached, cost)
        (
            (item.loss[low] - item.loss[high]) / (item.cost[high] - item.cost[low]),
            k,
            int(high),
            float(item.cost[high] - item.cost[low]),
        )
        for k, (item, hull) in enumerate(zip(items, hulls, strict=True))
        for low, high in itertools.pairwise(hull)
    ]
    # Slopes fall along a hull, so that a stable order keeps the steps of an item in theirs.
    steps.sort(key=lambda step: -step[0])
    left = budget - sum(float(item.cost[at]) for item, at in zip(items, choice, strict=True))
    for slope, k, reached, cost in steps:
        if cost > left:
            return choice, float(slope)
        choice[k], left = reached, left - cost
    return choice, 0.0


def _hull(item: Options) -> Ints:
    """Indices of the lower convex hull from the cheapest option down to the least loss, by cost."""
    order = np.lexsort((item.loss, item.cost))
    hull: list[int] = []
    for k in order:
        if hull and item.loss[k] >= item.loss[hull[-1]]:
            continue
        while len(hull) > 1 and _above(item, hull[-2], hull[-1], k):
            hull.pop()
        hull.append(int(k))
    return np.asarray(hull)


def _above(item: Options, low: int, middle: int, high: int) -> bool:
    """Whether the middle one lies on or above the line between the others."""
    cost, loss = item.cost, item.loss
    rise = (loss[low] - loss[middle]) * (cost[high] - cost[low])
    return bool(rise <= (loss[low] - loss[high]) * (cost[middle] - cost[low]))


def _spend(items: Sequence[Options], choice: list[int], budget: float) -> None:
    """Take the step that gains most for its cost, any option counted, while one fits."""
    left = budget - sum(float(item.cost[at]) for item, at in zip(items, choice, strict=True))
    best = [_step(item, at, left) for item, at in zip(items, choice, strict=True)]
    while True:
        k = int(np.argmax([gain for gain, _ in best]))
        gain, reached = best[k]
        if gain <= 0:
            return
        step = float(items[k].cost[reached] - items[k].cost[choice[k]])
        if step > left:  # there was room when it was found
            best[k] = _step(items[k], choice[k], left)
            continue
        choice[k], left = reached, left - step
        best[k] = _step(items[k], reached, left)


def _step(item: Options, at: int, left: float) -> tuple[float, int]:
    """(gain a unit of cost, option) of the best step from one option on that costs at most `left`;
    a gain of 0 where there is none."""
    cost = item.cost - item.cost[at]
    gain = item.loss[at] - item.loss
    fits = (cost <= left) & (gain > 0)
    if not fits.any():
        return 0.0, at
    rate = np.zeros_like(gain)
    # A step that gains and costs nothing is the best of all.
    rate[fits] = np.inf
    np.divide(gain, cost, out=rate, where=fits & (cost > 0))
    k = int(np.argmax(rate))
    return float(rate[k]), k


def _total(items: Sequence[Options], choice: Sequence[int]) -> float:
    return float(sum(item.loss[at] for item, at in zip(items, choice, strict=True)))


def _put_together(
    items: Sequence[Options],
    reduced: Sequence[Floats],
    budget: float,
    multiplier: float,
    known: float,
) -> list[int] | None:
    """The best choice with a loss below `known` by more than is `CLOSE`; None where there is none.

    By dynamic programming over items, those with the most to choose from first, so that the bound
    is sharp for the rest.
    """
    least = np.array([values.min() for values in reduced])
    slack = known * (1 - CLOSE) - (float(least.sum()) - multiplier * budget)
    open_ = [np.flatnonzero(values - values.min() <= slack) for values in reduced]
    order = sorted(range(len(items)), key=lambda k: -len(open_[k]))
    cheapest = np.array([items[k].cost[open_[k]].min() for k in order])
    rest = np.append(np.cumsum(cheapest[::-1])[::-1], 0.0)  # cost of the items that are to come

    cost, loss, beyond = np.zeros(1), np.zeros(1), np.zeros(1)
    trail: list[tuple[Ints, Ints]] = []  # of each state: where it came from, and the option
    for place, k in enumerate(order):
        at, item = open_[k], items[k]
        parent = np.repeat(np.arange(len(cost)), len(at))
        option = np.tile(at, len(cost))
        cost = cost[parent] + item.cost[option]
        loss = loss[parent] + item.loss[option]
        beyond = beyond[parent] + (reduced[k][option] - least[k])  # above the bound so far
        kept = np.flatnonzero((cost + rest[place + 1] <= budget) & (beyond <= slack))
        kept = kept[np.lexsort((loss[kept], cost[kept]))]
        # In order of cost, a state counts only with less loss than all cheaper ones.
        before = np.minimum.accumulate(np.append(np.inf, loss[kept]))[:-1]
        kept = kept[loss[kept] < before]
        if len(kept) > MOST_STATES:
            kept = np.sort(kept[np.argsort(beyond[kept], kind="stable")[:MOST_STATES]])
        if not len(kept):
            return None
        cost, loss, beyond = cost[kept], loss[kept], beyond[kept]
        trail.append((parent[kept], option[kept]))

    state = int(np.argmin(loss))
    if loss[state] >= known:
        return None
    choice = [0] * len(items)
    for k, (parent, option) in zip(reversed(order), reversed(trail), strict=True):
        choice[k], state = int(option[state]), int(parent[state])
    return choice
