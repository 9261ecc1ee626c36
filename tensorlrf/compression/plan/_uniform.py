"""Uniform ranks under one budget.

Each layer offers a *scale*: what each rank that it could take would cost, rising. One common share
of the dense cost chooses a rung of each scale, and what rounding leaves over is then spent a rung
at a time on the layer that is behind the others.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ROUNDING = 1 + 1e-12


@dataclass(frozen=True)
class Scale:
    """What a layer costs when `dense`, and at its `rungs`, which rise and are below that."""

    dense: float
    rungs: tuple[float, ...]

    def within(self, cost: float) -> int:
        """The highest rung of at most that cost, -1 where there is none."""
        return sum(rung <= cost * ROUNDING for rung in self.rungs) - 1


def uniform(scales: Sequence[Scale], share: float) -> list[int | None]:
    """A rung of each scale, or None for a layer that stays dense.

    The costs of all layers, dense ones included, sum up to at most `share` of the dense ones, which
    the first rungs together are known to do. A layer stays dense where even its first rung is above
    the share; the others pay for it. Where they cannot, it takes its first rung.
    """
    budget = share * sum(scale.dense for scale in scales) * ROUNDING
    # Layers that would stay dense, the dearest last: those give way first if the bound asks for it.
    stay = [k for k, scale in enumerate(scales) if scale.within(share * scale.dense) < 0]
    stay.sort(key=lambda k: (bool(scales[k].rungs), scales[k].dense))
    while stay and scales[stay[-1]].rungs:
        rest = [scale for k, scale in enumerate(scales) if k not in stay]
        room = budget - sum(scales[k].dense for k in stay)
        if sum(scale.rungs[0] for scale in rest) <= room:
            break
        stay.pop()
    room = budget - sum(scales[k].dense for k in stay)
    factored = {k: scale for k, scale in enumerate(scales) if k not in stay}
    rungs = _at_one_share(factored, share, room)
    _spend(factored, rungs, room)
    return [rungs.get(k) for k in range(len(scales))]


def _at_one_share(scales: Mapping[int, Scale], share: float, room: float) -> dict[int, int]:
    """The rungs at the largest common share, at most `share`, that fits into `room`."""

    def at(share: float) -> dict[int, int]:
        return {k: max(0, scale.within(share * scale.dense)) for k, scale in scales.items()}

    if _cost(scales, at(share)) <= room:
        return at(share)
    low, high = 0.0, share
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _cost(scales, at(middle)) <= room else (low, middle)
    return at(low)


def _spend(scales: Mapping[int, Scale], rungs: dict[int, int], room: float) -> None:
    """Climb one rung at a time, the layer with the smallest share first, while `room` allows."""
    left = room - _cost(scales, rungs)

    def share(k: int) -> float:
        return scales[k].rungs[rungs[k]] / scales[k].dense

    queue = [(share(k), k) for k in scales]
    heapq.heapify(queue)
    while queue:
        _, k = heapq.heappop(queue)
        above = rungs[k] + 1
        if above == len(scales[k].rungs):
            continue
        step = scales[k].rungs[above] - scales[k].rungs[rungs[k]]
        if step <= left:
            rungs[k], left = above, left - step
            heapq.heappush(queue, (share(k), k))


def _cost(scales: Mapping[int, Scale], rungs: Mapping[int, int]) -> float:
    return sum(scales[k].rungs[at] for k, at in rungs.items())
