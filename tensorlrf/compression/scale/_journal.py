"""A journal: what a run has done, line by line, for the run that goes on after it.

Each line is the checksum of it and of all before it, and JSON. A line is on the disk before the
next thing is done, so that a run which is killed loses what it had at hand and nothing else; a
last line that is torn was not written. Any other line that does not fit its checksum is damage.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorlrf.errors import ArgumentError, FileFormatError, shown
from tensorlrf.files.sealed import canonical, checksum_of

VERSION = 1

_CHECKSUM = 32
"""Characters."""


class Journal:
    """An open journal, whose first line says what the run is.

    entries  those behind the first line
    """

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        """Open it, or begin it where it is not there.

        Raises ArgumentError where it is that of another run, FileFormatError where it is damaged or
        of another version.
        """
        self.path = path
        self.entries: list[dict[str, Any]] = []
        self._last = ""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            end = self._read(dict(head))
            os.ftruncate(self._file, end)
            os.lseek(self._file, end, os.SEEK_SET)
            if not end:
                self._write({"version": VERSION, **head})
        except BaseException:
            os.close(self._file)
            raise

    def add(self, entry: Mapping[str, Any]) -> None:
        """Write a line; it is on the disk when this returns. Raises OSError."""
        # As it is read again: so a run that goes on sees what one sees that was never stopped.
        self.entries.append(json.loads(self._write(entry)))

    def close(self) -> None:
        os.close(self._file)

    def _write(self, entry: Mapping[str, Any]) -> bytes:
        text = canonical(entry)
        checksum = self._checksum(text)
        line = memoryview(checksum.encode() + b" " + text + b"\n")
        while line:
            line = line[os.write(self._file, line) :]
        os.fsync(self._file)
        self._last = checksum
        return text

    def _checksum(self, text: bytes) -> str:
        return checksum_of(self._last.encode() + text)

    def _read(self, head: dict[str, Any]) -> int:
        """Take the lines that are there; where the last whole one ends."""
        with open(self.path, "rb") as file:
            lines = file.read().split(b"\n")
        end = 0
        for k, line in enumerate(lines[:-1]):  # behind the last line end is nothing, or a torn one
            found, text = line[:_CHECKSUM], line[_CHECKSUM + 1 :]
            if found.decode("ascii", "replace") != self._checksum(text):
                if k == len(lines) - 2 and k:
                    break
                raise self._damaged(f"line {k + 1} does not fit its checksum")
            self._last = found.decode()
            entry = json.loads(text)
            if k:
                self.entries.append(entry)
            else:
                self._check_head(entry, head)
            end += len(line) + 1
        return end

    def _check_head(self, found: Any, head: dict[str, Any]) -> None:
        version = found.get("version") if isinstance(found, dict) else None
        if version != VERSION:
            raise FileFormatError(
                f"{self.path} is a journal of version {shown(version)}, and this tensorlrf goes on "
                f"with those of version {VERSION}; finish it with the one that began it, or "
                "begin anew with restart=True"
            )
        wanted = json.loads(canonical({"version": VERSION, **head}))
        other = [key for key in sorted({*wanted, *found}) if wanted.get(key) != found.get(key)]
        if other:
            told = "; ".join(
                f"{key} was {shown(found.get(key))}, is {shown(wanted.get(key))}" for key in other
            )
            raise ArgumentError(
                f"{self.path.parent} holds a run that has not ended and is another one: {told}; "
                "give what it was begun with, or begin anew with restart=True"
            )

    def _damaged(self, why: str) -> FileFormatError:
        return FileFormatError(f"{self.path} is damaged: {why}; begin anew with restart=True")
