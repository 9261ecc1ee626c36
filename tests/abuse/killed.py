"""Runs that are killed: the old is there or the new, and the next run ends with the same bytes."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tensorlrf.files.folder import present, put_right
from tests.abuse.course import LOST, Course, Run
from tests.abuse.reader import files_of, write
from tests.abuse.writers import Writer

QUARTERS = 4
"""Parts of the time of an undisturbed run."""


@dataclass
class Kills:
    """kills    how many runs were killed before they ended
    equal       how many were finished with the bytes of an undisturbed run
    torn        how many kills left a target that is neither old nor new
    left        what is beside the target after the last run, and was not there before
    fell        of the first kills of all runs, how many fell into which quarter of the undisturbed
                one, by the calls that were made
    """

    kills: int = 0
    trials: int = 0
    equal: int = 0
    torn: int = 0
    left: tuple[str, ...] = ()
    fell: list[int] = field(default_factory=lambda: [0] * QUARTERS)


class Trials:
    """A writer that is killed again and again, in a folder of its own."""

    def __init__(self, writer: Writer, folder: Path) -> None:
        self.writer, self.folder = writer, folder
        self.act = partial(writer.act, folder)
        write({}, folder)
        writer.prepare(folder)
        self.before = files_of(folder)
        self.times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        self.old = self._says()
        if writer.in_process:
            self.act()  # what it imports is there for all that are forked from here
            self.begin()
        self.course = Course.of(self.act)
        self.new = self._says()
        self.after = set(files_of(folder))
        assert self.new not in ("", self.old)

    def begin(self) -> None:
        """As it was before."""
        write({}, self.folder)
        if self.goes_on:  # in a folder that is there and empty
            (self.folder / self.writer.target).mkdir()
        for name, data in self.before.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            assert isinstance(data, bytes)
            path.write_bytes(data)
            os.utime(path, ns=(self.times[path], self.times[path]))

    def killed(self, share: float, draw: random.Random | None = None) -> int | None:
        """Run it up to the instant at that share of the undisturbed run, and kill it; how many
        calls it had made, or None where it had ended.

        draw  chooses, of a writer that starts several processes, the one that is killed
        """
        run = Run.of(self.act)
        if not run.comes_to(*self.course.at(share), self.course):
            assert run.ended() == 0
            return None
        calls = len(run.calls)
        run.kill(draw.choice if draw is not None and self.writer.loses_one else None)
        code = run.ended()
        assert code in (0, -9) or (code == LOST and self.writer.loses_one), code
        return None if code == 0 else calls

    def is_whole(self) -> bool:
        """What is there is the old or the new."""
        says = self._says()
        return says in (self.old, self.new) or (not self.writer.repeats and bool(says))

    def finish(self, found: Kills) -> None:
        """Run it to its end, and look at all that is there."""
        assert Run.of(self.act).ended() == 0
        found.trials += 1
        found.equal += self._says() == self.new
        rest = {name: data for name, data in files_of(self.folder).items() if name in self.before}
        replaced = self.writer.target in self.before
        for name, data in self.before.items():
            if not (replaced and name == self.writer.target):
                assert rest.get(name) == data, f"{name} was touched"
        found.left = tuple(sorted({*found.left, *(set(files_of(self.folder)) - self.after)}))

    def quarter(self, calls: int) -> int:
        """That of an undisturbed run in which it has made so many calls."""
        made = self.course.calls[:calls]
        return min(QUARTERS - 1, int(QUARTERS * (made[-1] if made else 0.0) / self.course.end))

    def _says(self) -> str:
        path = self.folder / self.writer.target
        if path.is_dir():
            put_right(path)  # as whoever reads it does
        is_there = present(path) if path.is_dir() and not self.goes_on else path.exists()
        return self.writer.says(path) if is_there else ""

    @property
    def goes_on(self) -> bool:
        """The target is the folder of a journal."""
        return not self.writer.repeats


def kills_of(writer: Writer, folder: Path, number: int, seed: int = 0) -> Kills:
    """So many runs killed at random instants, some of them again on the way, and then finished."""
    trials, found, draw = Trials(writer, folder), Kills(), random.Random(seed)
    while found.kills < number:
        trials.begin()
        for k in range(draw.choice([1, 1, 2, 4])):
            calls = trials.killed(draw.random(), draw)
            found.kills += calls is not None
            if calls is not None and not k:
                found.fell[trials.quarter(calls)] += 1
            found.torn += not trials.is_whole()
        trials.finish(found)
    return found
