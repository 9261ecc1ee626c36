"""Moments that are summed up into a file, by a run that may end early and go on.

Layers are summed up in parts, as many at a time as there is room for. A part has a file of its own
in the folder of the run, replaced whole every so many batches, whose sealed header says how many
are in it: one that is damaged is begun anew. What decided on the parts stands in the journal, so
that a run which goes on adds up the same numbers in the same order.

Each rank of a process group has a run of its own, with its batches. The first one writes what all
have, a layer at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path

import torch

from tensorlrf.compression._progress import progress_bar
from tensorlrf.compression.calibration._memory import parted
from tensorlrf.compression.calibration.moments._form import IMAGE, Form
from tensorlrf.compression.group._group import Alone
from tensorlrf.compression.journal._identity import checksum_of_batches
from tensorlrf.compression.moments._kept import InMemory, Joined
from tensorlrf.compression.moments._moments import Moments
from tensorlrf.compression.moments._passes import Part, Parted, Watched
from tensorlrf.compression.moments._ranks import OverRanks, on_demand
from tensorlrf.compression.moments._rows import both, by_name
from tensorlrf.compression.scale._stopping import Stopping
from tensorlrf.decomposition.linalg.threads import steady
from tensorlrf.errors import ArgumentError, FileError, FileFormatError
from tensorlrf.files.job import JOURNAL, PARTS, clear, held, job_folder, of_others, of_rank
from tensorlrf.files.journal import Journal
from tensorlrf.files.replace import check_target, exists
from tensorlrf.files.sealed import checksum_of, made_by
from tensorlrf.files.strict import JsonNode

BEGUN, APART = "begun", "apart"
"""Kinds of entries: which layers are summed up together and how; some that are not fed the same."""

FORMS = ("full", "sketch", IMAGE, "counts")

EVERY_BYTES = 1 << 26
"""A part of so many bytes is written after each batch, one of k times as many after k."""

LEAST_WRITES = 8
"""Of a part, at the least, of as many batches."""


@dataclass(frozen=True)
class Target:
    """path    of the file
    others     moments that are added at the end
    threads    of torch, for every pass alike
    """

    path: Path
    others: Sequence[Moments]
    threads: int
    overwrite: bool
    restart: bool


def summed_into(target: Target, watched: Watched, progress: bool) -> Moments:
    """The moments, once they are in the file.

    Raises ArgumentError for others that do not add up, or where a run that has not ended is another
    one; FileError where the file exists, cannot be written, or another run is at it; and
    KeyboardInterrupt after Ctrl-C.
    """
    group = watched.data.group
    _check_others(target, watched)
    check_target(target.path, overwrite=True)
    own = of_rank(target.path, group.rank, group.size)
    _check_ranks(target, group)
    head = {
        "made_by": made_by(),
        "torch": torch.__version__,
        "layers": checksum_of(repr([watched.row(name).weight for name in watched.names]).encode()),
        "names": checksum_of("\n".join(watched.names).encode()),
        "data": checksum_of_batches(watched.data.batches, None),
        "others": [one.checksum() for one in target.others],
        "threads": target.threads,
    }
    begun = not target.restart and (job_folder(own, as_folder=False) / JOURNAL).exists()
    going_on = not group.every(not begun)
    if target.path.exists() and not target.overwrite and not going_on:
        raise exists(target.path)
    with held(own, as_folder=False, restart=target.restart) as folder:
        journal = Journal(folder / JOURNAL, head, _check_entry)
        try:
            moments = _Run(folder, journal, watched).summed(target.threads, progress)
            _save(target, moments, group)
        finally:
            journal.close()
        (folder / JOURNAL).unlink()
    return Moments.load(target.path)


def _save(target: Target, moments: Moments, group: Alone) -> None:
    """What all ranks have, and others beside it."""
    whole = moments if group.size == 1 else on_demand(moments, group)
    summed = whole.kept
    if group.is_first:
        reduce(add, target.others, whole).save(target.path, overwrite=True)
    if isinstance(summed, OverRanks):
        (summed.done if group.is_first else summed.follow)()


def _check_ranks(target: Target, group: Alone) -> None:
    """Raise ArgumentError where a run on another number of ranks has not ended, of which nothing is
    of use; take it away where all begins anew."""
    left = []
    for path in of_others(target.path, group.size):
        if not target.restart:
            left.append(f"{job_folder(path, as_folder=False)}")
        elif group.is_first:
            clear(path, as_folder=False)
    if left:
        raise ArgumentError(
            f"a run into {target.path} on another number of processes has not ended ({left[0]}); "
            "go on with as many, or begin anew with restart=True (--restart)"
        )
    group.every(True)


@dataclass
class _Run:
    folder: Path
    journal: Journal
    watched: Watched

    def summed(self, threads: int, progress: bool) -> Moments:
        """All parts, where their files are."""
        parts = self._begun()
        batches = len(self.watched.data.batches)
        with (
            Stopping() as stopped,
            progress_bar("calibrate", batches * len(parts), progress) as advance,
            steady(threads),
        ):
            done = [
                self._part(k, names, advance, stopped, batches) for k, names in enumerate(parts)
            ]
        order = {name: k for k, name in enumerate(self.watched.names)}
        rows = sorted((row for one in done for row in one.layers), key=lambda row: order[row.name])
        return Moments(
            tuple(rows), batches, Joined({r.name: m.kept for m in done for r in m.layers})
        )

    def _begun(self) -> list[list[str]]:
        """The names of each part, as they were when the run began."""
        entries = self.journal.entries
        begun = next((entry for entry in entries if entry["kind"] == BEGUN), None)
        if begun is None:
            watched = self.watched
            forms = watched.data.forms
            own = [name for name in watched.ordered if name not in watched.like]
            parts = parted({name: watched.bytes_of(name) for name in own}, watched.data.room)
            self.journal.add(
                {
                    "kind": BEGUN,
                    "parts": [[n for one in part for n in watched.followed(one)] for part in parts],
                    "forms": {n: [form.kind, form.size] for n, form in forms.items()},
                    "like": dict(watched.like),
                }
            )
            begun = self.journal.entries[-1]
        forms = {name: Form(kind, size) for name, (kind, size) in begun["forms"].items()}
        found: list[list[str]] = begun["parts"]
        if not self.watched.may_be_kept_as(forms):
            raise self._damaged("forms")
        self.watched = self.watched.kept_as(forms)
        if self.watched.like != begun["like"]:
            raise self._damaged("like")
        if sorted(name for names in found for name in names) != sorted(self.watched.names):
            raise self._damaged("parts")
        for entry in entries:
            if entry["kind"] == APART:
                self.watched = self.watched.without(entry["names"])
        return found

    def _damaged(self, key: str) -> FileFormatError:
        return FileFormatError(
            f"{self.journal.path} is damaged: what it has as {key!r} is not of this model; begin "
            "anew with restart=True"
        )

    def _part(
        self,
        number: int,
        names: list[str],
        advance: Callable[[str], None],
        stopped: Stopping,
        batches: int,
    ) -> Moments:
        file = self.folder / PARTS / f"{number:06}.safetensors"
        while True:
            part = self._gone_on(file, names)
            for k in range(part.done):
                advance(f"batch {k + 1}")
            every = max(1, min(-(-batches // LEAST_WRITES), part.n_bytes // EVERY_BYTES))

            def kept(part: Part = part, every: int = every) -> None:
                ends = part.done == batches
                if ends or part.done % every == 0 or (stopped() and not part.settles):
                    _write(part, file)
                if not ends:
                    stopped.end(f"{part.done:,} of {batches:,} batches are kept in {self.folder}")

            try:
                part.run(advance, kept)
            except Parted as found:
                self.journal.add({"kind": APART, "names": list(found.names)})
                self.watched = self.watched.without(found.names)
                file.unlink(missing_ok=True)
                continue
            if not batches:  # of this rank
                _write(part, file)
            stopped.end(f"{number + 1:,} parts are kept in {self.folder}")
            return Moments.load(file)

    def _gone_on(self, file: Path, names: list[str]) -> Part:
        """The part with what its file has, where that is whole and of the same layers."""
        part = Part(self.watched, names)
        try:
            found = Moments.load(file)
            if found.batches > len(self.watched.data.batches):
                return part
            wanted = {(row.name, row.kept, row.groups, row.weight) for row in part.rows()}
            same = wanted == {(row.name, row.kept, row.groups, row.weight) for row in found.layers}
            like = {row.name: row.like for row in found.layers if row.count}
            if same and all(like[n] == self.watched.like.get(n, "") for n in like):
                part.restore(found)
        except (FileError, FileFormatError):
            return Part(self.watched, names)
        return part


def _write(part: Part, file: Path) -> None:
    sums = part.settled(lambda tensor: tensor.cpu())
    Moments(tuple(part.rows()), part.done, InMemory(sums)).save(file, overwrite=True)


def _check_others(target: Target, watched: Watched) -> None:
    """Raise ArgumentError where what is to be added is of another model or kept in another form."""
    rows = [replace(watched.row(name), count=1) for name in watched.names]
    for one in target.others:
        both(by_name(rows), by_name(one.layers))


def _check_entry(at: JsonNode) -> None:
    kind = at["kind"].text()
    if kind == APART:
        at.keys_are(["kind", "names"])
        _texts(at["names"])
    elif kind == BEGUN:
        at.keys_are(["kind", "parts", "forms", "like"])
        for names in at["parts"].entries():
            _texts(names)
        at["like"].each(JsonNode.text)
        for name in at["forms"].mapping():
            form = at["forms"][name]
            if len(form.entries()) != 2 or form[0].text() not in FORMS:
                form.wrong("a form of moments")
            form[1].whole()
    else:
        at["kind"].wrong(f"{BEGUN} or {APART}")


def _texts(at: JsonNode) -> None:
    for one in at.entries():
        one.text()
