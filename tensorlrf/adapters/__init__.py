"""Adapters as values: taken out of two checkpoints, added, cut, begun, read and written as peft
has them. Nothing of peft is imported."""

from tensorlrf.adapters._adapter import Adapter
from tensorlrf.adapters._extract import extract
from tensorlrf.adapters._norms import row_norms
from tensorlrf.adapters._starts import (
    Nested,
    Start,
    initialize,
    milora,
    nora,
    nystrom,
    pissa,
    svfit,
)

__all__ = [
    "Adapter",
    "Nested",
    "Start",
    "extract",
    "initialize",
    "milora",
    "nora",
    "nystrom",
    "pissa",
    "row_norms",
    "svfit",
]
