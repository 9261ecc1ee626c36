"""Where the code of the drawn mutants is today.

Mutants are drawn once; the code that they change moves, and is rewritten. Each has a row in
moved.json: the line that does today what its line did, and the same kind of change to the same
quantity. Rows are found by rule (`relocated`) as far as that goes, and told by hand where a
statement was rewritten; then `how` says what took its place.
"""

from __future__ import annotations

import ast
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path

from bench.house.trees import functions
from bench.mutants.edits import edits_of
from bench.mutants.mutant import ROOT, Fault, Mutant, owners, read_list, sources

MOVED = Path(__file__).with_name("moved.json")
BY_HAND = "by hand"
SAME, ALIKE = "same line", "line rewritten in the same function or class"
SIMILAR = 0.75
"""Ratio of `difflib` from which a line of the same function is the same one, rewritten."""


@dataclass(frozen=True)
class Moved(Fault):
    """One fault where it is planted today.

    mutant    name of the drawn one, which it has in the results
    path      of the file, from the root
    function  qualified name, in which `line` stands once
    how       it was found: `SAME`, `ALIKE`, or `BY_HAND` and what took the place of the old line
    """

    mutant: str
    path: str
    function: str
    line: str
    column: int
    was: str
    now: str
    how: str

    @property
    def name(self) -> str:
        return self.mutant

    @property
    def by_hand(self) -> bool:
        return self.how.startswith(BY_HAND)

    def find(self, root: Path = ROOT) -> tuple[Path, int] | None:
        """(file, number of the line from 0), or None where it is not there, or not only once."""
        path = root / self.path
        if not path.exists():
            return None
        text = path.read_text()
        lines = text.splitlines()
        own = [n for n, owner in owners(text) if owner == self.function]
        found = [n for n in own if lines[n].strip() == self.line]
        return (path, found[0]) if len(found) == 1 else None


def read_moved(path: Path = MOVED) -> list[Moved]:
    """In the order of the drawn ones."""
    rows = {row["mutant"]: Moved(**row) for row in json.loads(path.read_text())}
    return [rows[mutant.name] for mutant in read_list() if mutant.name in rows]


def write_moved(rows: list[Moved], path: Path = MOVED) -> None:
    """For `read_moved`."""
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def relocated(mutant: Mutant, root: Path = ROOT) -> Moved | None:
    """By rule: the same line where `Mutant.find` tells it, else the most similar line of a function
    or class of that name, which the same kind of edit changes in the same way; None where none is
    `SIMILAR`, or two are as much."""
    place = mutant.find(root)
    if place is not None:
        path, number = place
        function = dict(owners(path.read_text()))[number]
        change = (mutant.line, mutant.column, mutant.was, mutant.now)
        return Moved(mutant.name, str(path.relative_to(root)), function, *change, SAME)
    ranked = sorted(_alike(mutant, root), key=lambda pair: pair[0], reverse=True)
    if not ranked or ranked[0][0] < SIMILAR:
        return None
    if len(ranked) > 1 and ranked[1][0] == ranked[0][0]:
        return None
    return ranked[0][1]


def relocated_all(known: Mapping[str, Moved], root: Path = ROOT) -> tuple[list[Moved], list[str]]:
    """(the rows, the names of those that are to be told by hand). What was told so stays, in the
    file to which its function has moved, and so does a row that has nowhere to go."""
    rows, missing = [], []
    for mutant in read_list():
        was = known.get(mutant.name)
        row = relocated(mutant, root) if was is None or not was.by_hand else followed(was, root)
        if row is None:
            missing.append(mutant.name)
            row = was
        if row is not None:
            rows.append(row)
    return rows, missing


def followed(row: Moved, root: Path = ROOT) -> Moved | None:
    """Where its function has that line today, in this file or the only other one."""
    if row.find(root) is not None:
        return row
    paths = [str(path.relative_to(root)) for path in sources(root)]
    found = [one for path in paths if (one := replace(row, path=path)).find(root) is not None]
    return found[0] if len(found) == 1 else None


def _alike(mutant: Mutant, root: Path) -> Iterator[tuple[float, Moved]]:
    """(similarity, row) of the edits of that kind in functions and classes of that name."""
    for path in sources(root):
        text = path.read_text()
        if not any(_related(name, mutant.function) for name, _ in functions(ast.parse(text))):
            continue
        lines = text.splitlines()
        times: dict[tuple[str, str], int] = defaultdict(int)
        for n, owner in owners(text):
            times[owner, lines[n].strip()] += 1
        for edit in edits_of(text):
            line = lines[edit.line].strip()
            same = edit.kind == mutant.kind and _related(edit.function, mutant.function)
            if same and times[edit.function, line] == 1:
                column = edit.column - lines[edit.line].index(line)
                change = (line, column, edit.was, edit.now)
                row = Moved(mutant.name, str(path.relative_to(root)), edit.function, *change, ALIKE)
                yield SequenceMatcher(None, mutant.changed, row.changed, False).ratio(), row


def _related(name: str, drawn: str) -> bool:
    """Whether functions have one name, which more than one class has where it is Python's, or are
    of classes that have."""
    (own, _, last), (old, _, was) = name.rpartition("."), drawn.rpartition(".")
    in_class = own == old and own[:1].isupper()
    return in_class or (last == was and not last.startswith("__"))
