"""A checkpoint shared out over the ranks of a process group.

Layers are handed out one at a time, those that take longest first, to whichever rank is free: no
prediction has to be right. Each rank writes the factors it makes and a journal of its own, so that
one which dies loses its layer at hand. The first rank holds the lock of the output for all, takes
the lines of all journals into the one of the run, and makes the output.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tensorlrf.compression._progress import Advance
from tensorlrf.compression.group._board import Board
from tensorlrf.compression.group._group import Alone, Group
from tensorlrf.compression.plan._plan import LayerPlan
from tensorlrf.compression.scale._entries import check_entry
from tensorlrf.decomposition.linalg.threads import spectrum_work
from tensorlrf.errors import ArgumentError, GroupError
from tensorlrf.files.events import LAYER, tell
from tensorlrf.files.job import JOURNAL, held, job_folder, of_ranks, rank_journal
from tensorlrf.files.journal import Journal

Stopped = Callable[[], bool]

T = TypeVar("T")

_HELD, _MADE = "held", "made"
_CLAIMED, _DONE = "claimed", "done"


@contextmanager
def held_by_first(group: Alone, target: Path, *, as_folder: bool, restart: bool) -> Iterator[Path]:
    """The folder of the run, whose lock the first rank has for all."""
    if group.is_first:
        with held(target, as_folder=as_folder, restart=restart) as folder:
            yield folder
        return
    assert isinstance(group, Group)
    group.board.hear(_HELD)
    yield job_folder(target, as_folder=as_folder)


def journal_of(group: Alone, folder: Path, head: Mapping[str, Any]) -> Journal:
    """That in which this rank writes. That of the first one has all that earlier runs have done.

    Raises what a `Journal` does, and GroupError where this rank sees another folder than the first.
    """
    if not group.is_first:
        if not (folder / JOURNAL).is_file():
            raise GroupError(
                f"{folder} is not what rank 0 sees there; the output must lie in a file system "
                "that all ranks share"
            )
        journal = Journal(rank_journal(folder, group.rank), head, check_entry)
        journal.hold()
        return journal
    journal = Journal(folder / JOURNAL, head, check_entry)
    try:
        _take_in(folder, journal, head)
        for path in of_ranks(folder):
            path.unlink()
    except BaseException:
        journal.close()
        raise
    if isinstance(group, Group):
        group.board.say(_HELD)
    return journal


def handed_out(
    group: Alone, rows: Sequence[LayerPlan], done: Mapping[str, Any]
) -> Iterator[LayerPlan]:
    """The layers that this rank is to factor, of those that are not `done`, as the first knows."""
    if not isinstance(group, Group):
        return (row for row in rows if row.name not in done)
    known = set(of_first(group, "known", list(done)))
    return _claimed(group.board, [row for row in rows if row.name not in known])


def _claimed(board: Board, left: Sequence[LayerPlan]) -> Iterator[LayerPlan]:
    longest_first = sorted(left, key=predicted_work, reverse=True)
    while (k := board.counted(_CLAIMED) - 1) < len(longest_first):
        board.look()
        yield longest_first[k]


def predicted_work(row: LayerPlan) -> float:
    """Of the factors of a layer, to compare it with others: multiply-adds of one spectrum of its
    matrix, or of as many products with factors of its rank as its method may make sweeps."""
    m, n = row.shape[0], math.prod(row.shape[1:])
    sweeps = getattr(row.method, "n_iter_max", None)
    rank = getattr(row.method, "rank", None)
    if not isinstance(sweeps, int) or not isinstance(rank, int):
        return spectrum_work(m, n)
    return float(sweeps) * m * n * rank


def telling(group: Alone, advance: Advance) -> Advance:
    """Counts what is done on all ranks; that of the first rank shows it."""
    return _Telling(group, advance) if isinstance(group, Group) else advance


@dataclass
class _Telling:
    """shown  how many layers the bar has advanced by"""

    group: Group
    advance: Advance
    shown: int = 0

    def __call__(
        self, name: str, /, *, earlier: bool = False, logged: bool = True, **told: Any
    ) -> None:
        """This rank has done a layer, or none where it has no name. Each rank logs its own."""
        done = self.group.board.counted(_DONE, 1 if name else 0)
        if name:
            tell(LAYER, task="compress", name=name, by_rank=self.group.rank, **told)
        for _ in range(done - self.shown if self.group.is_first else 0):
            self.advance(name, logged=False)
        self.shown = done


def of_others(
    group: Alone, journal: Journal, folder: Path, head: Mapping[str, Any],
    advance: Advance, stopped: Stopped,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Layer -> entry, of what other ranks have made: on the first rank, which waits for them unless
    it is stopped, and whose journal says it then."""
    if not isinstance(group, Group) or stopped():
        return {}
    board = group.board
    board.say(f"{_MADE}/{group.rank}")
    if not group.is_first:
        return {}

    def there() -> bool:
        advance("")  # they may have made more
        return stopped() or board.has([f"{_MADE}/{k}" for k in range(group.size)])

    board.until(there)
    advance("")
    return {entry["name"]: entry for entry in _take_in(folder, journal, head)}


def of_first(group: Alone, what: str, value: T) -> T:
    """What the first rank has, a JSON value, for all."""
    if not isinstance(group, Group):
        return value
    if group.is_first:
        group.board.say(what, json.dumps(value))
        return value
    told: T = json.loads(group.board.hear(what))
    return told


def _take_in(folder: Path, journal: Journal, head: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Have the journal say what those of ranks say; the entries that are new to it."""
    known = {json.dumps(entry, sort_keys=True) for entry in journal.entries}
    new = []
    for path in of_ranks(folder):
        try:
            one = Journal(path, head, check_entry)
        except ArgumentError:  # of a run that another one has taken the place of
            continue
        one.close()
        for entry in one.entries:
            if json.dumps(entry, sort_keys=True) not in known:
                journal.add(entry)
                new.append(entry)
    return new
