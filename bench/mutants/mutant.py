"""A small fault planted in one line, told so that it is found again when files have moved."""

from __future__ import annotations

import ast
import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from bench.house.trees import functions

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("tensorlrf", "kernels/tensorlrf_kernels")
LIST = Path(__file__).with_name("mutants.json")


class Fault:
    """One edit of one line: `was`, that begins at `column` of `line` without its indentation,
    becomes `now`."""

    line: str
    column: int
    was: str
    now: str

    @property
    def name(self) -> str:
        """As it is called in the results; the same after a move."""
        raise NotImplementedError

    @property
    def changed(self) -> str:
        """The line with the fault, without its indentation."""
        end = self.column + len(self.was)
        return self.line[: self.column] + self.now + self.line[end:]

    def find(self, root: Path = ROOT) -> tuple[Path, int] | None:
        """(file, number of the line from 0), or None where it is no more or cannot be told from
        another."""
        raise NotImplementedError

    def apply(self, root: Path) -> Path:
        """Plant the fault in the tree under `root`; returns the file. Raises LookupError."""
        place = self.find(root)
        if place is None:
            raise LookupError(self.name)
        path, number = place
        lines = path.read_text().splitlines(keepends=True)
        lines[number] = lines[number].replace(self.line, self.changed)
        path.write_text("".join(lines))
        return path


@dataclass(frozen=True)
class Mutant(Fault):
    """One as it was drawn.

    folder      where the file was when the mutant was drawn; no part of how it is found
    stem        of the file, "package/" before it where the file is an __init__
    function    qualified name, without the module
    line, nth   text of the line without its indentation, and which one of such lines it is
    column      where in that text `was` begins
    was, now    what stands there, and what is put in its place
    kind        of the edit, see `bench.mutants.edits`
    """

    folder: str
    stem: str
    function: str
    line: str
    nth: int
    column: int
    was: str
    now: str
    kind: str

    @property
    def name(self) -> str:
        change = f"{self.was.strip() or self.was} -> {self.now.strip() or self.now}"
        return f"{self.stem}:{self.function}:{self.line}#{self.nth}@{self.column}: {change}"

    def find(self, root: Path = ROOT) -> tuple[Path, int] | None:
        """In the file of that stem, else in the one file that has such a line in such a
        function, else the one such line in any function."""
        alike, anywhere = [], []
        for path in sources(root):
            text = path.read_text()
            lines = text.splitlines()
            same = [(n, owner) for n, owner in owners(text) if lines[n].strip() == self.line]
            anywhere += [(path, n) for n, _ in same]
            mine = [n for n, owner in same if owner == self.function]
            alike += [(path, n) for n in mine[self.nth : self.nth + 1]]
        at_home = [place for place in alike if stem_of(place[0]) == self.stem]
        candidates = at_home or alike or anywhere
        return candidates[0] if len(candidates) == 1 else None


def read_list(path: Path = LIST) -> list[Mutant]:
    """The committed ones."""
    return [Mutant(**values) for values in json.loads(path.read_text())["mutants"]]


def write_list(mutants: list[Mutant], seed: int, path: Path = LIST) -> None:
    """As JSON, for `read_list`."""
    values = {"seed": seed, "mutants": [asdict(mutant) for mutant in mutants]}
    path.write_text(json.dumps(values, indent=1) + "\n")


def sources(root: Path = ROOT) -> list[Path]:
    """The files of both packages."""
    return sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))


def stem_of(path: Path) -> str:
    """The name of the file; of an __init__ and of files that every op has, the folder's too."""
    plain = path.stem.startswith("_") and path.stem != "__init__"
    return path.stem if plain else f"{path.parent.name}/{path.stem}"


@cache
def owners(text: str) -> tuple[tuple[int, str], ...]:
    """(number of a line from 0, the innermost function that it belongs to), in order."""
    owner: dict[int, str] = {}
    for name, node in functions(ast.parse(text)):  # inner ones come later and take their lines
        owner |= dict.fromkeys(range(node.lineno - 1, node.end_lineno or node.lineno), name)
    return tuple(sorted(owner.items()))
