"""Where moments of layers are: in memory, or to be added up when they are asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from tensorlrf.compression.calibration.moments._moments import Moments
from tensorlrf.compression.moments._layer import CalibratedLayer, empty

Groups = tuple[Moments, ...]
"""Of each group of a layer, on the CPU."""


class Kept(ABC):
    """Sums by the layer that they are kept for."""

    @abstractmethod
    def read(self, row: CalibratedLayer) -> Groups:
        """What the layer of a row has been fed; to be looked at alone."""

    def own(self, row: CalibratedLayer) -> Groups:
        """The same, to be changed."""
        return self.read(row)


@dataclass(frozen=True)
class InMemory(Kept):
    """sums  layer -> those of each group"""

    sums: Mapping[str, Groups]

    def read(self, row: CalibratedLayer) -> Groups:
        return self.sums[row.source]

    def own(self, row: CalibratedLayer) -> Groups:
        return tuple(moved(row, one, lambda t: t.clone()) for one in self.read(row))


@dataclass(frozen=True)
class Added(Kept):
    """The sum of others, of one layer at a time.

    parts  where they are, each with its rows by layer
    """

    parts: Sequence[tuple[Kept, Mapping[str, CalibratedLayer]]]

    def read(self, row: CalibratedLayer) -> Groups:
        found: Groups = ()
        for kept, rows in self.parts:
            own = rows[row.name]
            if not own.count:
                continue
            if not found:
                found = kept.own(own)
            else:
                for one, other in zip(found, kept.read(own), strict=True):
                    one.merge(other)
        return found


@dataclass(frozen=True)
class Joined(Kept):
    """Of different layers, each where it is.

    places  layer -> that
    """

    places: Mapping[str, Kept]

    def read(self, row: CalibratedLayer) -> Groups:
        return self.places[row.name].read(row)

    def own(self, row: CalibratedLayer) -> Groups:
        return self.places[row.name].own(row)


def moved(row: CalibratedLayer, moments: Moments, to: Callable[[Tensor], Tensor]) -> Moments:
    """What an accumulator of any layer has summed, as it is kept, in other memory."""
    new = empty(row)
    new.restore(moments.count, {name: to(t) for name, t in moments.tensors().items()})
    return new
