"""How many of the inputs are looked at: as many as losses and metrics are told by, and no more.

Losses are sums over many directions, and settle early. Second moments of rows of as many numbers as
a layer has outputs need some rows for each of these.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tensorlrf.compression.calibration.batches import Batch
from tensorlrf.compression.group._group import ALONE, Alone

T = TypeVar("T")

SAMPLES, LEAST, MOST = 128, 4, 12
"""Of batches that are differentiated for losses: samples that are enough, and how many batches they
are at the least and at the most."""

OUTPUT_ROWS, GRADIENT_ROWS = 8, 8
"""Of outputs and of gradients, for each number in one of them. Whether there are as many is asked
after each `LEAST` batches, so that ranks that share these out need not wait after each."""


def scattered(batches: Sequence[T]) -> Iterator[T]:
    """All of them, in an order of which every beginning is evenly spaced, by multiples of the
    golden ratio: they may be in order of length, or two kinds may take turns."""
    ratio = (math.sqrt(5) - 1) / 2
    for k in sorted(range(len(batches)), key=lambda k: k * ratio % 1):
        yield batches[k]


@dataclass(frozen=True)
class Turn:
    """samples  of a batch whose turn it is
    batch    that one; None where another rank has it
    """

    samples: int
    batch: Batch | None


def turns(batches: Sequence[Batch], group: Alone = ALONE) -> Iterator[Turn]:
    """The same of the batches of all ranks together, in the order of their numbers."""
    if group.size == 1:
        yield from (Turn(batch.samples, batch) for batch in scattered(batches))
        return
    own = {batch.index: batch for batch in batches}
    told = group.gathered([(k, batch.samples) for k, batch in own.items()])
    for k, samples in scattered(sorted(one for part in told for one in part)):
        yield Turn(samples, own.get(k))


def told(batches: int, samples: int) -> bool:
    """Whether losses are known after so many."""
    return batches >= MOST or (batches >= LEAST and samples >= SAMPLES)
