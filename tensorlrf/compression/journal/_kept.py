"""What a call has measured, value by value, in a journal: what is there is not measured again.

A value is found by what it is of, and the journal by all that decides on values. So the same call,
made again after it was killed, finds what it had measured, measures the rest and comes to the same
end. What is tensors lies in files beside, with checksums of their own.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tensorlrf.compression.group._group import ALONE, Alone
from tensorlrf.decomposition.linalg.threads import steady
from tensorlrf.errors import ArgumentError
from tensorlrf.files.arguments import PathLike, as_path
from tensorlrf.files.journal import Journal, Words
from tensorlrf.files.replace import cannot_write
from tensorlrf.files.safetensors import opened, plain
from tensorlrf.files.sealed import (
    Stored,
    canonical,
    checked,
    checksum_of,
    made_by,
    seal,
    unseal,
    write_sealed,
)
from tensorlrf.files.strict import JsonNode

NAME = "measured.journal"
KEY = "tensorlrf.measured"
VERSION = 1

WORDS = Words("holds what another call has measured", "give another folder as journal=")

Of = tuple[str, ...]
"""What a value is of."""


class Kept:
    """Values by what they are of. Without a journal there are none, and none is kept."""

    def __init__(
        self, journal: Journal | None = None, path: Path | None = None, run: str = "",
        values: Mapping[Of, Any] | None = None, group: Alone = ALONE,
    ) -> None:  # fmt: skip
        self._journal, self.path, self._run = journal, path, run
        self._values, self._group = dict(values or {}), group

    @property
    def folder(self) -> Path | None:
        """That the user gave."""
        return None if self.path is None else self.path.parent

    def find(self, *of: str) -> JsonNode | None:
        """The value, to be read; None where there is none."""
        if of not in self._values:
            return None
        return JsonNode(self._values[of], " ".join(of), os.fspath(self.path or ""))

    def put(self, values: Mapping[Of, Any]) -> None:
        """Keep these, as JSON. Raises FileError."""
        if self._journal is None:
            return
        try:
            self._journal.add(*({"of": list(of), "is": value} for of, value in values.items()))
        except OSError as error:
            raise cannot_write(self._journal.path, error) from error

    def number(self, of: Of, make: Callable[[], float]) -> float:
        """Measured by `make` where it is not there."""
        found = self.find(*of)
        if found is not None:
            return found.word_or_number()
        value = make()
        self.put({of: number(value)})
        return value

    def tensors(self, name: str) -> dict[str, Tensor] | None:
        """Those in a file beside the journal, on the CPU; None where this run has written none.
        Raises FileFormatError where it is damaged."""
        found = self._read(name) if self._group.is_first and self.path is not None else None
        return self._group.of(0, found)

    def put_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep these in a file beside the journal. Raises FileError."""
        if self._journal is None:
            return
        own = {key: plain(t) for key, t in tensors.items()}
        values = {
            "version": VERSION,
            "tensorlrf": made_by(),
            "tensors": {key: Stored.of(t).to_json() for key, t in own.items()},
            "run": self._run,
        }
        write_sealed(self._file(name), KEY, seal(values), own, overwrite=True)

    def close(self) -> None:
        """Keep nothing from here on."""
        if self._journal is not None:
            self._journal.close()
        self._journal = None

    def _file(self, name: str) -> Path:
        assert self.path is not None
        return self.path.parent / f"{name}.safetensors"

    def _read(self, name: str) -> dict[str, Tensor] | None:
        path = self._file(name)
        if not os.path.lexists(path):
            return None
        with opened(path) as file:
            if KEY not in file.metadata:
                raise file.damaged("it holds nothing that was measured")
            root = unseal(file, KEY, VERSION)
            if root["run"].text() != self._run:
                return None
            read = checked(file, root["tensors"].each(Stored.read))
            return {key: read(key) for key in file.tensors}


NOT_KEPT = Kept()


@contextmanager
def kept_in(
    journal: PathLike | None,
    group: Alone,
    random_state: int | torch.Generator | None,
    identity: Callable[[], Mapping[str, Any]],
) -> Iterator[Kept]:
    """What is in the folder that the argument names, and will be; made where it is missing. All
    ranks of a group know the same, and the first one writes.

    identity  tells what the journal is of

    Raises ArgumentError where it is of another call, or draws could not be repeated; FileError,
    FileFormatError where it cannot be written, is damaged, or a run has it open.
    """
    if journal is None:
        yield NOT_KEPT
        return
    path = as_path(journal, "journal") / NAME
    if isinstance(random_state, bool) or not isinstance(random_state, int):
        raise ArgumentError(
            f"random_state={random_state!r} must be an int with journal=: a call that goes on "
            "draws the same"
        )
    head = identity()
    opened_, error = None, None
    if group.is_first:
        try:
            opened_ = _opened(path, head)
        except Exception as one:
            error = one
    group.fail_together(error)
    entries = group.of(0, None if opened_ is None else opened_.entries) or []
    values = {tuple(entry["of"]): entry["is"] for entry in entries}
    kept = Kept(opened_, path, checksum_of(canonical(head)), values, group)
    try:
        # Else sums would be added in another order where somebody else is at work.
        with steady(torch.get_num_threads()):
            yield kept
    except KeyboardInterrupt as stop:
        stop.add_note(f"what was measured is kept in {path.parent}; the same call goes on")
        raise
    finally:
        kept.close()


def _opened(path: Path, head: Mapping[str, Any]) -> Journal:
    try:
        os.makedirs(path.parent, exist_ok=True)
    except OSError as error:
        raise cannot_write(path.parent, error) from error
    return Journal(path, head, _check, WORDS, alone=True)


def _check(at: JsonNode) -> None:
    at.keys_are(["of", "is"])
    for one in at["of"].entries():
        one.text()


def number(value: float) -> float | str:
    """As JSON has it: infinity and NaN are words."""
    return value if math.isfinite(value) else repr(value)


def numbers(values: Sequence[float]) -> list[float | str]:
    """Of all of them."""
    return [number(float(value)) for value in values]
