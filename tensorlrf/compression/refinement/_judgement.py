"""What a model loses on inputs held out, part by part, and whether another one loses less.

Two states of a model are compared in pairs, group by group: the inputs are the same. With few
groups the mean may fall while the expected loss does not, and the lowest of many checkpoints falls
by chance alone; so a state counts as better where the lower bound on its fall is above 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor, nn

from tensorlrf.compression._paired import Floats, clustered_error, deviations, student
from tensorlrf.compression.calibration.batches import Batch
from tensorlrf.compression.refinement._objective import Objective, Wanted
from tensorlrf.compression.refinement._processes import Processes

LEVEL = 0.95
"""Of the bound, one-sided."""

Row = tuple[float, ...]


@dataclass(frozen=True)
class Judgement:
    """Of each of the groups held out, or of each sample where none are told:

    lost   distance of the outputs from those of the given model
    whole  what the sum of these is to be divided by
    told   values of the user's function
    count  how many
    """

    lost: Row
    whole: Row
    told: Row
    count: Row

    @cached_property
    def value(self) -> float:
        """The loss; infinite where it is no number."""
        lost, whole, told, count = (sum(row) for row in self._rows)
        found = (lost / whole if whole > 0 else lost) + told / max(1.0, count)
        return found if math.isfinite(found) else math.inf

    def fall(self, other: Judgement) -> float:
        """By how much the expected loss is below that of `other` at the least, with confidence; of
        a single group, whose noise nothing tells, the fall that was seen."""
        seen = other.value - self.value
        n = len(self.lost)
        if n < 2 or not math.isfinite(seen):
            return seen
        mine, before = (np.array(one._rows) for one in (self, other))
        moved = deviations(before[0] - mine[0], mine[1]) + deviations(before[2] - mine[2], mine[3])
        return seen - student(LEVEL, n - 1) * clustered_error(moved)

    @property
    def _rows(self) -> tuple[Row, Row, Row, Row]:
        return self.lost, self.whole, self.told, self.count


@dataclass(frozen=True)
class HeldOut:
    """batches  to judge by
    wanted   what counts of the given model's outputs for each
    groups   index of a batch -> number of the group that it is of; None where samples are judged
    """

    batches: Sequence[Batch]
    wanted: Sequence[Wanted]
    groups: Mapping[int, int] | None = None

    @classmethod
    def of(
        cls, batches: Sequence[Batch], wanted: Sequence[Wanted], groups: Sequence[int] | None
    ) -> HeldOut:
        """With the groups of all batches; samples, where one group alone is held out."""
        if groups is None or len({groups[batch.index] for batch in batches}) < 2:
            return cls(batches, wanted)
        return cls(batches, wanted, {batch.index: groups[batch.index] for batch in batches})

    def judge(
        self, model: nn.Module, objective: Objective, processes: Processes, like: Tensor
    ) -> Judgement:
        """A model, on the batches of all processes; `like` is on the device where these meet."""
        parts: list[Floats] = []
        numbers: dict[tuple[int, ...], int] = {}
        at: list[int] = []
        for batch, one in zip(self.batches, self.wanted, strict=True):
            part = objective.parts(model, one, batch)
            parts.append(part)
            for k in range(part.shape[1]):
                own = (batch.index, k) if self.groups is None else (self.groups[batch.index],)
                at.append(numbers.setdefault(own, len(numbers)))
        columns = np.concatenate(parts, axis=1)
        rows = np.array([np.bincount(at, weights=row) for row in columns], np.float64)
        return Judgement(*(tuple(row) for row in processes.gathered(rows, like).tolist()))
