"""How many of the inputs are looked at: as many as losses and metrics are told by, and no more.

Losses are sums over many directions, and settle early. Second moments of rows of as many numbers as
a layer has outputs need some rows for each of these.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from tensorlrf.compression.calibration.batches import Batch

SAMPLES, LEAST, MOST = 128, 4, 12
"""Of batches that are differentiated for losses: samples that are enough, and how many batches they
are at the least and at the most."""

OUTPUT_ROWS, GRADIENT_ROWS = 8, 8
"""Of outputs and of gradients, for each number in one of them."""


def scattered(batches: Sequence[Batch]) -> Iterator[Batch]:
    """All of them, in an order of which every beginning is evenly spaced, by multiples of the
    golden ratio: they may be in order of length, or two kinds may take turns."""
    ratio = (math.sqrt(5) - 1) / 2
    for k in sorted(range(len(batches)), key=lambda k: k * ratio % 1):
        yield batches[k]


def told(batches: int, samples: int) -> bool:
    """Whether losses are known after so many."""
    return batches >= MOST or (batches >= LEAST and samples >= SAMPLES)
