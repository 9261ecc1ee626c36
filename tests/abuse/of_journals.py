"""Readers of what runs on inputs, and runs of several ranks, have left that were killed."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

import tensorlrf
from tensorlrf.compression import _working_copy
from tensorlrf.compression.moments import _run as moments
from tensorlrf.compression.moments._file import KEY
from tensorlrf.compression.scale import _run
from tensorlrf.compression.scale._entries import check_entry
from tensorlrf.errors import CalibrationWarning
from tensorlrf.files.job import JOURNAL, job_folder, rank_journal
from tensorlrf.files.journal import Journal
from tests.abuse.of_runs import goes_on, pull, pulled, untouched
from tests.abuse.reader import MINE, WHEN, Reader, Wrong, files_of, of_files
from tests.compression.networks import set_weights
from tests.compression.scale.blocks.networks import ids, net, on_meta
from tests.draws import seeded32

SOURCE = "in.safetensors"

HEAD = 33
"""Characters of a line of a journal before what it says."""


@dataclass(frozen=True)
class Fitted:
    """A run on inputs, from what lies in `SOURCE` to the file or folder `target`."""

    model: Callable[[], nn.Module]
    target: str
    call: Callable[[Path, Path], object]

    def __call__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CalibrationWarning)
            self.call(folder / SOURCE, folder / self.target)

    def make_source(self, folder: Path) -> None:
        save_file(self.model().state_dict(), folder / SOURCE)
        (folder / MINE).write_text("mine")
        os.utime(folder / SOURCE, (WHEN, WHEN))

    def pulled(self, module: Any, name: str, number: int) -> Callable[[Path], None]:
        """A run that ends with the n-th call of a function."""

        def make(folder: Path) -> None:
            self.make_source(folder)
            pull(module, name, number, lambda: self(folder))

        return make

    def goes_on(self, folder: Path) -> str:
        try:
            self(folder)
        finally:
            self.untouched(folder)
        return of_files(folder)

    def untouched(self, folder: Path) -> None:
        """Nothing but the output, and what it is made in, has changed."""
        found = {name: folder.joinpath(name).read_bytes() for name in (SOURCE, MINE)}
        if found != self._source():
            raise Wrong("a file that is only read was touched")
        job = job_folder(folder / self.target, as_folder=False).name
        if set(os.listdir(folder)) - {SOURCE, MINE, self.target, job}:
            raise Wrong(f"there are {sorted(os.listdir(folder))}")

    @cache  # noqa: B019 -- there are two of them, which live as long as the module
    def _source(self) -> dict[str, bytes | str]:
        with tempfile.TemporaryDirectory() as name:
            self.make_source(Path(name))
            return files_of(Path(name))


# ---- moments -----------------------------------------------------------------------------------


@cache
def chain() -> nn.Module:
    return set_weights(nn.Sequential(*(nn.Linear(6, 6) for _ in range(12))))


def sum_up(source: Path, target: Path) -> None:
    """In two parts, as all twelve layers have no room at once."""
    batches = [seeded32(20, 6, seed=k) for k in range(3)]
    tensorlrf.calibrate(
        chain(), batches, target, skip=[], memory_limit=3000, threads=1, overwrite=True,
        progress=False,
    )  # fmt: skip


# ---- blocks ------------------------------------------------------------------------------------


def blocks() -> nn.Module:
    return net(blocks=2, n=8)


def by_blocks(source: Path, target: Path) -> None:
    tensorlrf.compress_checkpoint(
        source, target, keep_params=0.5, calibration=ids(2, size=6), model=on_meta(blocks()),
        inputs="prefix", threads=1, progress=False,
    )  # fmt: skip


# ---- ranks -------------------------------------------------------------------------------------


def of_two_ranks(folder: Path) -> None:
    """A run in which the second of two ranks has made all layers but the first."""
    pulled(_run, "store", 3)(folder)
    job = job_folder(folder / "out", as_folder=True)
    head, first, *others = (job / JOURNAL).read_bytes().splitlines(keepends=True)
    (job / JOURNAL).write_bytes(head + first)
    said = json.loads(head[HEAD:])
    del said["version"]
    journal = Journal(rank_journal(job, 1), said, check_entry)
    for line in others:
        journal.add(json.loads(line[HEAD:]))
    journal.close()


MOMENTS = Fitted(chain, "m.safetensors", sum_up)
BLOCKS = Fitted(blocks, "b.safetensors", by_blocks)


def left_by(run: Fitted, name: str, foreign: str) -> Reader:
    """What it leaves when it is killed."""
    where: tuple[Any, str, int] = (
        (moments, "_write", 4) if run is MOMENTS else (_working_copy, "factor", 3)
    )
    return Reader(
        name, run.pulled(*where), run.goes_on, sealed=True, foreign=(foreign,), key=KEY,
        after=run.untouched,
    )  # fmt: skip


READERS = (
    left_by(MOMENTS, "journal of moments", "*/journal"),
    Reader(
        "journals of ranks", of_two_ranks, goes_on, sealed=True, foreign=("*/journal*",),
        after=untouched,
    ),
)  # fmt: skip
LONG = (
    left_by(MOMENTS, "run of moments", ".*.job/*"),
    left_by(BLOCKS, "journal of blocks", "*/journal"),
    left_by(BLOCKS, "run of blocks", ".*.job/*"),
)
"""Each reads its inputs again, or runs blocks."""
