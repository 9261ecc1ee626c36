"""One budget shared out over perceptrons, bottlenecks and attentions.

All modules of a block are cut to one share; over blocks shares are equal, or as the influence of
the blocks has them: sparsity ~ softmax(-influence / epsilon) (Lin et al. 2025, equations 10, 11).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tensorlrf.compression.losses._published import MOST_SPARSITY, TEMPERATURE
from tensorlrf.errors import ArgumentError


@dataclass(frozen=True)
class Sized:
    """Of a structure.

    most    channels, or numbers of a head, that it has
    least   that it must keep
    step    of which what it keeps is a multiple, where it does not keep all
    params  of its weights, all told; each channel has as many as any other
    """

    most: int
    least: int
    step: int
    params: int

    @property
    def each(self) -> int:
        """Parameters for one channel."""
        return self.params // self.most

    @property
    def grid(self) -> list[int]:
        """What it may keep, from the least to all."""
        first = -(-self.least // self.step) * self.step
        return sorted({self.least, *range(first, self.most, self.step), self.most})


def shares(
    keep: float, sized: Sequence[Sized], influence: Sequence[float] | None = None
) -> list[float]:
    """The share of each structure: all equal, or after the influence of the block of each."""
    if influence is None:
        return [keep] * len(sized)
    whole = sum(one.params for one in sized)
    least = min(influence)
    weights = [math.exp(-(value - least) / TEMPERATURE) for value in influence]
    cap = max(MOST_SPARSITY, 1 - keep)
    cut, free = [0.0] * len(sized), set(range(len(sized)))
    room = (1 - keep) * whole
    while free and room > 1e-9 * whole:
        scale = room / sum(weights[k] * sized[k].params for k in free)
        over = {k for k in free if scale * weights[k] >= cap}
        for k in over or free:
            cut[k] = cap if over else scale * weights[k]
            room -= cut[k] * sized[k].params
        free -= over or set(free)
    return [1 - one for one in cut]


def sizes(keep: float, sized: Sequence[Sized], wanted: Sequence[float]) -> list[int]:
    """What each structure keeps, within `keep` of all their parameters together: its share rounded
    down, and then a step more where most is wanting and it still fits.

    Raises ArgumentError where the least that all must keep is more.
    """
    whole = sum(one.params for one in sized)
    room = keep * whole * (1 + 1e-12)
    found = [
        one.most
        if share >= 1
        else max(one.least, int(share * one.most / one.step + 1e-9) * one.step)
        for one, share in zip(sized, wanted, strict=True)
    ]
    spent = sum(n * one.each for n, one in zip(found, sized, strict=True))
    # Where the least of some is above their share the others give.
    while spent > room:
        above = [k for k, one in enumerate(sized) if found[k] > one.least]
        if not above:
            least = math.ceil(spent / whole * 1e4) / 1e4
            raise ArgumentError(
                f"keep_params={keep:g} leaves {int(room):,} parameters, but the perceptrons, "
                f"attentions and bottlenecks need {spent:,} at the least; keep_params={least} is "
                "the least they can do with"
            )
        k = max(above, key=lambda k: found[k] / sized[k].most - wanted[k])
        less = max(sized[k].least, _below(found[k], sized[k].step))
        spent -= (found[k] - less) * sized[k].each
        found[k] = less
    while True:
        more = [
            k
            for k, one in enumerate(sized)
            if found[k] < one.most and spent + _step(found[k], one) * one.each <= room
        ]
        if not more:
            return found
        k = max(more, key=lambda k: wanted[k] - found[k] / sized[k].most)
        spent += _step(found[k], sized[k]) * sized[k].each
        found[k] += _step(found[k], sized[k])


def _step(kept: int, one: Sized) -> int:
    return min(one.step - kept % one.step, one.most - kept)


def _below(kept: int, step: int) -> int:
    return (kept - 1) // step * step


def by_block(names: Mapping[str, float], layers: Sequence[Sequence[str]]) -> list[float] | None:
    """The influence of the block of each structure, by that of its layers; None without blocks."""
    if not names:
        return None
    return [sum(names[n] for n in own) / len(own) for own in layers]
