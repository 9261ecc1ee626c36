"""The files of a harvest: rows as they come, each on the disk before the next, and a summary."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROWS, SUMMARY, LOG = "rows.jsonl", "summary.json", "log.txt"
MOST_LOGGED = 8 * 2**20  # bytes


class Journal:
    """Rows, summary and log in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        self._rows = os.open(folder / ROWS, flags, 0o644)
        self._log = os.open(folder / LOG, flags, 0o644)
        self._room = MOST_LOGGED

    def row(self, values: Mapping[str, Any]) -> None:
        """Add a row; it is on the disk when this returns."""
        os.write(self._rows, (json.dumps(values) + "\n").encode())
        os.fsync(self._rows)

    def log(self, text: bytes) -> None:
        """Add to the log, which takes MOST_LOGGED bytes in all."""
        kept = text[: self._room]
        self._room -= len(kept)
        os.write(self._log, kept)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Put a summary in the place of the last one, in one step."""
        temporary = self.folder / f".{SUMMARY}.part"
        temporary.write_text(json.dumps(values, indent=1) + "\n")
        os.replace(temporary, self.folder / SUMMARY)

    def close(self) -> None:
        """Close the files."""
        os.close(self._rows)
        os.close(self._log)


def rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of a harvest, without a last one that was cut off."""
    for line in (folder / ROWS).read_bytes().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return
