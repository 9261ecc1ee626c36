"""Damaged inputs of every reader, some of each; `bench/damaged.py` has ten thousand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.abuse.corpus import found
from tests.abuse.law import FAULTS, SAME, Seed, outcome
from tests.abuse.readers import ALL, READERS
from tests.files.kills import quick_disk

__all__ = ["quick_disk"]

FEW, MANY = 24, 500


def check(name: str, number: int, folder: Path) -> None:
    seed = Seed.of(ALL[name], folder / "f")
    cases = [seed.case(k) for k in range(number)]
    cases += [one.case(seed) for one in found() if one.reader == name]
    ends = [(k, outcome(seed, case, folder / "f")) for k, case in enumerate(cases)]
    wrong = [(k, one) for k, one in ends if one.end in FAULTS]
    assert not wrong
    assert len({one.kind for _, one in ends}) > 5
    assert any(one.end != SAME for _, one in ends)


@pytest.mark.usefixtures("quick_disk")
@pytest.mark.parametrize("name", READERS)
def test_damage_is_refused_or_means_nothing(name: str, tmp_path: Path) -> None:
    check(name, FEW, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_disk")
@pytest.mark.parametrize("name", ALL)
def test_much_damage(name: str, tmp_path: Path) -> None:
    check(name, MANY, tmp_path)
