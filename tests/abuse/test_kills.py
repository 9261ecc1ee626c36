"""Every writing command, killed at any call of the system and at random instants."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.abuse.writers import OTHERS, Kills, Trials, Writer, kills_of, streams
from tests.files.kills import calls_of, killed, quick_disk

__all__ = ["quick_disk"]

WRITERS = (*streams(width=8), *OTHERS)
FEW = 5
"""Kills of each, in the default suite."""


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
@pytest.mark.parametrize("writer", [*streams(width=64), *OTHERS], ids=lambda writer: writer.name)
def test_a_hundred_kills_at_random_instants(writer: Writer, tmp_path: Path) -> None:
    found = kills_of(writer, tmp_path / "f", 100)
    assert (found.torn, found.left) == (0, ())
    assert found.equal == found.trials
