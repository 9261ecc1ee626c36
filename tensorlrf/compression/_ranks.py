"""Uniform ranks under one budget.

Each layer offers a *ladder*: the ranks it could take with the parameters each would cost, rising.
One common share of the dense parameters chooses a rung of each ladder, and what rounding leaves
over is then spent a rung at a time on the layer that is behind the others.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from tensorlrf.decomposition.ladder import Ladder, Rung
from tensorlrf.errors import ArgumentError


def allocate(ladders: Sequence[Ladder], keep_params: float) -> list[Rung | None]:
    """A rung of each ladder, or None for a layer that stays dense.

    The parameters of all layers, dense ones included, sum up to at most
    floor(keep_params * dense parameters). A layer stays dense where even its first rung is above
    the share; the others pay for it. Where they cannot, it takes its first rung.
    Raises ArgumentError where all first rungs together are above the budget.
    """
    total = sum(ladder.dense for ladder in ladders)
    budget = math.floor(keep_params * total * (1 + 1e-12))
    least = sum(ladder.rungs[0].params for ladder in ladders)
    if least > budget:
        raise ArgumentError(
            f"keep_params={keep_params:g} leaves {budget:,} parameters, but the eligible layers "
            f"need {least:,} at the smallest ranks there are; keep_params="
            f"{_round_up(least / total)} is the least they can do with"
        )
    choice = [_rung_within(ladder, keep_params * ladder.dense) for ladder in ladders]
    # Layers that would stay dense, the dearest last: those give way first if the bound asks for it.
    stay = sorted((k for k, c in enumerate(choice) if c < 0), key=lambda k: ladders[k].dense)
    while stay:
        rest = [ladder for k, ladder in enumerate(ladders) if k not in stay]
        room = budget - sum(ladders[k].dense for k in stay)
        if sum(ladder.rungs[0].params for ladder in rest) <= room:
            break
        stay.pop()
    room = budget - sum(ladders[k].dense for k in stay)
    factored = {k: ladder for k, ladder in enumerate(ladders) if k not in stay}
    rungs = _uniform(factored, keep_params, room)
    _spend(factored, rungs, room)
    return [ladders[k].rungs[rungs[k]] if k in rungs else None for k in range(len(ladders))]


def _uniform(ladders: dict[int, Ladder], share: float, room: int) -> dict[int, int]:
    """The rungs at the largest common share, at most `share`, that fits into `room`."""

    def at(share: float) -> dict[int, int]:
        return {k: max(0, _rung_within(lad, share * lad.dense)) for k, lad in ladders.items()}

    def params(rungs: dict[int, int]) -> int:
        return sum(ladders[k].rungs[i].params for k, i in rungs.items())

    if params(at(share)) <= room:
        return at(share)
    low, high = 0.0, share
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if params(at(middle)) <= room else (low, middle)
    return at(low)


def _spend(ladders: dict[int, Ladder], rungs: dict[int, int], room: int) -> None:
    """Climb one rung at a time, the layer with the smallest share first, while `room` allows."""
    left = room - sum(ladders[k].rungs[i].params for k, i in rungs.items())

    def share(k: int) -> float:
        return ladders[k].rungs[rungs[k]].params / ladders[k].dense

    queue = [(share(k), k) for k in ladders]
    heapq.heapify(queue)
    while queue:
        _, k = heapq.heappop(queue)
        above = rungs[k] + 1
        if above == len(ladders[k].rungs):
            continue
        step = ladders[k].rungs[above].params - ladders[k].rungs[rungs[k]].params
        if step <= left:
            rungs[k], left = above, left - step
            heapq.heappush(queue, (share(k), k))


def _rung_within(ladder: Ladder, params: float) -> int:
    """Index of the highest rung of at most `params` parameters, -1 where there is none."""
    allowed = params * (1 + 1e-12)
    return sum(rung.params <= allowed for rung in ladder.rungs) - 1


def _round_up(share: float) -> float:
    return math.ceil(share * 1e4) / 1e4
