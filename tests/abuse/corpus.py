"""Damaged files that fuzzing has found: the smallest for each thing that readers say of them."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.abuse.damage import Damaged
from tests.abuse.law import Seed

PATH = Path(__file__).with_suffix(".txt")


@dataclass(frozen=True)
class Found:
    """reader  that meets it
    name       of the file, among those that the reader reads
    data       what is in it
    """

    reader: str
    name: str
    data: bytes

    def case(self, seed: Seed) -> Damaged:
        """It among the other files. It may have checksums that fit: no fault is what it says."""
        return Damaged("fuzz", {**seed.files, self.name: self.data}, lies=True)


def found() -> list[Found]:
    """All of them."""
    if not PATH.exists():
        return []
    rows = (line.split("\t") for line in PATH.read_text(encoding="ascii").splitlines())
    return [
        Found(reader, name, zlib.decompress(base64.b85decode(text))) for reader, name, text in rows
    ]


def keep(them: Iterable[Found]) -> None:
    rows = sorted(
        f"{one.reader}\t{one.name}\t{base64.b85encode(zlib.compress(one.data, 9)).decode()}\n"
        for one in them
    )
    PATH.write_text("".join(rows), encoding="ascii")
