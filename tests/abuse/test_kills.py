"""Every writing command, killed at any call of the system and at random instants."""

from __future__ import annotations

import signal
import time
from functools import partial
from pathlib import Path

import pytest

from tests.abuse.commands import OF_TRANSFORMERS, ranks
from tests.abuse.course import Course, Run
from tests.abuse.killed import Kills, Trials, kills_of
from tests.abuse.writers import LONG, OTHERS, Writer, streams
from tests.files.kills import calls_of, killed, quick_disk

__all__ = ["quick_disk"]

WRITERS = (*streams(width=8), *OTHERS)
FEW = 5
"""Kills of each, in the default suite."""

SMALL = 20
"""Files that a run writes of which nothing matters but its course."""


@pytest.mark.usefixtures("quick_disk")
@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.name)
def test_a_kill_leaves_the_old_or_the_new(writer: Writer, tmp_path: Path) -> None:
    """At some calls of the system; what is left over goes with the next run."""
    trials, found = Trials(writer, tmp_path / "f"), Kills()
    act = partial(writer.act, tmp_path / "f")
    trials.begin()
    calls = calls_of(act)
    for _ in killed(trials.begin, act, every=max(1, calls // FEW)):
        assert trials.is_whole()
        trials.finish(found)
    assert found.trials == found.equal >= min(calls, FEW)
    assert found.left == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    "writer", [*streams(width=64), *OTHERS, *LONG], ids=lambda writer: writer.name
)
def test_a_hundred_kills_at_random_instants(writer: Writer, tmp_path: Path) -> None:
    found = kills_of(writer, tmp_path / "f", 100)
    assert (found.torn, found.left) == (0, ())
    assert found.equal == found.trials


@pytest.mark.slow
@pytest.mark.parametrize("writer", [*ranks(width=64), *OF_TRANSFORMERS], ids=lambda one: one.name)
def test_kills_of_commands_that_take_long(writer: Writer, tmp_path: Path) -> None:
    found = kills_of(writer, tmp_path / "f", 5)
    assert (found.torn, found.left) == (0, ())
    assert found.equal == found.trials


def test_instants_are_told_by_what_a_run_has_done(tmp_path: Path) -> None:
    """Not by a clock, which in a run that takes ten times as long would tell earlier ones."""

    def act(pause: float, rest: float) -> None:
        for k in range(SMALL):
            time.sleep(pause)
            (tmp_path / str(k)).write_text("")
        time.sleep(rest)

    course = Course(tuple(k / 1000 for k in range(1, SMALL + 1)), (SMALL + 1) / 1000)
    for share in (0.0, 0.5, 0.9):
        run = Run.of(partial(act, 0.01, 60.0))
        n, behind = course.at(share)
        assert run.comes_to(n, behind, course)
        assert len(run.calls) >= n >= int(share * SMALL)
        run.kill()
        assert run.ended() == -signal.SIGKILL
    run = Run.of(partial(act, 0.0, 0.0))
    assert not run.comes_to(SMALL + 2, 0.0, course)  # calls, and its end
    assert run.ended() == 0
    assert len(Course.of(partial(act, 0.0, 0.0)).calls) == SMALL
