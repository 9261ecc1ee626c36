"""Moments of the ranks of a process group, each of which has seen batches of its own, as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

from tensorlrf.compression.calibration.moments._over_ranks import add_up
from tensorlrf.compression.group._group import Alone
from tensorlrf.compression.moments._kept import Groups, InMemory, Kept
from tensorlrf.compression.moments._layer import CalibratedLayer, empty
from tensorlrf.compression.moments._moments import Moments
from tensorlrf.compression.moments._rows import Rows, both, by_name


def over_ranks(moments: Moments, group: Alone) -> Moments:
    """The sum of what all ranks of a group have, in memory, on each of them: one all-reduce of the
    sums of a layer, which are the caller's no more; sketches are gathered and merged in the order
    of ranks.

    Every rank calls it, with moments of the same layers; of those that its own batches have not
    reached a rank adds zeros. Raises ArgumentError, on all ranks alike, where they do not add up.
    """
    whole = on_demand(moments, group)
    kept = whole.kept
    assert isinstance(kept, OverRanks)
    own = [row for row in whole.layers if row.count and not row.like]
    sums = {row.name: kept.summed(row.name) for row in own}
    return Moments(whole.layers, whole.batches, InMemory(sums))


def on_demand(moments: Moments, group: Alone) -> Moments:
    """The same, where a layer is added up when the first rank reads it, as often as it does; the
    others `follow` it in that."""
    told = group.gathered((moments.batches, by_name(moments.layers)))
    rows = reduce(both, [rows for _, rows in told])
    kept = OverRanks(moments.kept, by_name(moments.layers), rows, group)
    return Moments(tuple(rows.values()), sum(n for n, _ in told), kept)


@dataclass(frozen=True)
class OverRanks(Kept):
    """The sums of all ranks.

    of_rank  where those of this rank are
    mine     the rows of this rank, by layer
    rows     those of all
    group    the ranks
    """

    of_rank: Kept
    mine: Mapping[str, CalibratedLayer]
    rows: Rows
    group: Alone

    def read(self, row: CalibratedLayer) -> Groups:
        """On the first rank."""
        self.group.of(0, row.source)
        return self.summed(row.source)

    def follow(self) -> None:
        """On every other rank: add up what the first one reads, until it has `done`."""
        while (name := self.group.of(0, "")) != DONE:
            self.summed(name)

    def done(self) -> None:
        """On the first rank: it reads no more."""
        self.group.of(0, DONE)

    def summed(self, name: str) -> Groups:
        """Of one layer. A call of all ranks."""
        row, own = self.rows[name], self.mine[name]
        found: Groups = tuple(empty(row) for _ in range(row.groups))
        if own.count:
            # Of layers that were fed the same here and not elsewhere each needs a sum of its own.
            alone = not any(
                one.like and not self.rows[one.name].like and name in (one.name, one.like)
                for one in self.mine.values()
            )
            found = (self.of_rank.read if alone else self.of_rank.own)(own)
        for one in found:
            add_up(one, self.group)
        return found


DONE = "\0"
"""No name of a layer."""
