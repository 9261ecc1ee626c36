"""What `compress_checkpoint` was asked for, looked at."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tensorlrf.compression.plan._plan import LayerPlan, Plan
from tensorlrf.compression.scale._entries import STAYS
from tensorlrf.compression.scale._report import CheckpointReport
from tensorlrf.compression.scale._run import layers_of
from tensorlrf.compression.scale.architecture import Architecture
from tensorlrf.compression.scale.stored import StoredTensors
from tensorlrf.errors import ArgumentError

SHARD_BYTES = 5_000_000_000
"""Of a file of the output, at most: what users of transformers are used to."""

Done = Mapping[str, Mapping[str, Any]]
"""Layer -> its entry of the journal."""


@dataclass(frozen=True)
class Call:
    """source  as given
    target     likewise
    stored     the tensors of the source
    known      the model that they are of
    plan       for it
    """

    source: Path
    target: Path
    stored: StoredTensors
    known: Architecture
    plan: Plan

    @property
    def as_folder(self) -> bool:
        """Whether the output is a folder with shards, not one file."""
        return self.target.suffix != ".safetensors"

    @property
    def rows(self) -> tuple[LayerPlan, ...]:
        """Of the layers that get factors."""
        return tuple(row for row in self.plan.layers if row.factored)

    def report(
        self, done: Done, tensors: int, n_bytes: int, resumed: int = 0, *, already: bool = False
    ) -> CheckpointReport:
        """What came of it: how many `tensors` were written, of so many bytes; `already` where an
        earlier run had."""
        layers = tuple(layers_of(self.rows, done))
        stays = {row.name: row.reason for row in self.plan.layers if not row.factored}
        stays |= {n: entry["reason"] for n, entry in done.items() if entry["kind"] == STAYS}
        return CheckpointReport(
            os.fspath(self.source),
            os.fspath(self.target),
            layers,
            stays,
            tensors,
            self.stored.n_bytes,
            n_bytes,
            len(done) if already else resumed,
            self.known.notes,
            already,
        )


def checked_numbers(random_state: int, threads: int | None, shard_bytes: int) -> int:
    """The threads. Raises ArgumentError for what none of these can be."""
    if isinstance(random_state, bool) or not isinstance(random_state, int):
        raise ArgumentError(
            f"random_state={random_state!r} must be an int: a run that goes on draws the same"
        )
    for name, value in (("threads", threads), ("shard_bytes", shard_bytes)):
        if value is None and name == "threads":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ArgumentError(f"{name}={value!r} must be an int of at least 1")
    return torch.get_num_threads() if threads is None else threads
