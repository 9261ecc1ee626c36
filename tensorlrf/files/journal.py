"""A journal: what a run has done, line by line, for the run that goes on after it.

Each line is the checksum of it and of all before it, and JSON. A line is on the disk before the
next thing is done, so that a run which is killed loses what it had at hand and nothing else; a
last line that is torn was not written. Any other line that does not fit its checksum is damage, and
so is one that does fit and is no entry.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorlrf.errors import ArgumentError, FileError, FileFormatError, shown
from tensorlrf.files import _locks, system
from tensorlrf.files.sealed import canonical, checksum_of
from tensorlrf.files.strict import JsonNode

VERSION = 1

_CHECKSUM = 32
"""Characters."""

LONGEST_LINE = 1 << 26
"""Bytes; entries of layers have a few thousand."""

Check = Callable[[JsonNode], None]
"""Raises FileFormatError where an entry is not as it should be."""


@dataclass(frozen=True)
class Words:
    """What a refusal says.

    another  of a folder whose journal is that of another run
    anew     how to begin anew
    """

    another: str = "holds a run that has not ended and is another one"
    anew: str = "begin anew with restart=True"


class Journal:
    """An open journal, whose first line says what the run is.

    head     what the run is, as it is given
    entries  those behind the first line
    """

    def __init__(
        self,
        path: Path,
        head: Mapping[str, Any],
        check: Check,
        words: Words = Words(),  # it is frozen
        *,
        alone: bool = False,
    ) -> None:
        """Open it, or begin it where it is not there.

        check  looks at each entry
        alone  keep others out while it is open, where nothing else does

        Raises ArgumentError where it is that of another run, FileFormatError where it is damaged or
        of another version, FileError where the system refuses it, or another process has it open.
        """
        self.path, self.head, self.words = path, dict(head), words
        self.entries: list[dict[str, Any]] = []
        self._last, self._check = "", check
        try:
            flags = os.O_RDWR | os.O_CREAT | system.NO_LINK | system.BINARY
            self._file = os.open(path, flags, 0o666)
        except OSError as error:
            raise FileError(f"{path} cannot be written to: {error}") from error
        try:
            if alone and _locks.take(self._file) is False:
                raise FileError(
                    f"a run that keeps its journal in {path.parent} is going on already; wait for "
                    "it, or give another folder"
                )
            end = self._read(dict(head))
            os.ftruncate(self._file, end)
            os.lseek(self._file, end, os.SEEK_SET)
            if not end:
                self._write({"version": VERSION, **head})
        except BaseException:
            os.close(self._file)
            raise

    def add(self, *entries: Mapping[str, Any]) -> None:
        """Write a line for each; they are on the disk when this returns. Raises OSError."""
        # As it is read again: so a run that goes on sees what one sees that was never stopped.
        self.entries.extend(json.loads(text) for text in self._write(*entries))

    def hold(self) -> None:
        """Have others know, by a lock, that this process is alive."""
        _locks.take(self._file)

    def close(self) -> None:
        os.close(self._file)

    def _write(self, *entries: Mapping[str, Any]) -> list[bytes]:
        texts = [canonical(entry) for entry in entries]
        for text in texts:
            checksum = self._checksum(text)
            system.write_all(self._file, checksum.encode() + b" " + text + b"\n")
            self._last = checksum
        os.fsync(self._file)
        return texts

    def _checksum(self, text: bytes) -> str:
        return checksum_of(self._last.encode() + text)

    def _read(self, head: dict[str, Any]) -> int:
        """Take the lines that are there; where the last whole one ends."""
        end, torn = 0, False
        for k, line in enumerate(self._lines()):
            if torn:
                raise self._damaged(f"line {k} does not fit its checksum")
            found, text = line[:_CHECKSUM], line[_CHECKSUM + 1 : -1]
            checksum = self._checksum(text)
            if line != checksum.encode() + b" " + text + b"\n":
                if not k and line.endswith(b"\n"):
                    raise self._damaged("line 1 does not fit its checksum")
                torn = True  # unless another one follows
                continue
            self._last = found.decode()
            try:
                entry = JsonNode.of_text(text.decode(), str(self.path))
                values = entry.mapping()
                if k:
                    self._check(entry)
            except (UnicodeDecodeError, FileFormatError) as error:
                raise self._damaged(f"line {k + 1}: {error}") from None
            if k:
                self.entries.append(values)
            else:
                self._check_head(values, head)
            end += len(line)
        return end

    def _lines(self) -> Iterator[bytes]:
        """With their ends, the last one perhaps without. Raises FileFormatError, FileError."""
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            raise FileError(f"{self.path} is no file; remove it")
        with open(self._file, "rb", closefd=False) as file:
            while line := file.readline(LONGEST_LINE):
                if len(line) == LONGEST_LINE:
                    raise self._damaged(f"it has a line of more than {LONGEST_LINE:,} bytes")
                yield line

    def _check_head(self, found: dict[str, Any], head: dict[str, Any]) -> None:
        version = found.get("version")
        if type(version) is not int or version != VERSION:
            raise FileFormatError(
                f"{self.path} is a journal of version {shown(version)}, and this tensorlrf goes on "
                f"with those of version {VERSION}; finish it with the one that began it, or "
                f"{self.words.anew}"
            )
        wanted = json.loads(canonical({"version": VERSION, **head}))
        other = [key for key in sorted({*wanted, *found}) if wanted.get(key) != found.get(key)]
        if other:
            told = "; ".join(
                f"{key} was {shown(found.get(key))}, is {shown(wanted.get(key))}" for key in other
            )
            raise ArgumentError(
                f"{self.path.parent} {self.words.another}: {told}; give what it was begun with, or "
                f"{self.words.anew}"
            )

    def _damaged(self, why: str) -> FileFormatError:
        return FileFormatError(f"{self.path} is damaged: {why}; {self.words.anew}")
