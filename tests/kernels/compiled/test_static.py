"""What the goals' launches compile to is no worse than what was kept of them."""

from __future__ import annotations

from typing import Any

import pytest

from bench.static.goals import GOALS, Goal
from bench.static.results import judged, kept, stem, worse
from tensorlrf_kernels.chips import A100, B200, H200, Chip

pytestmark = pytest.mark.aot


def assert_no_worse(goal: Goal, chip: Chip) -> None:
    """The compiler is deterministic, so there is no slack."""
    before = kept().get((goal.name, chip.name))
    assert before is not None, f"no row in {stem()}.json: python -m bench.static --write"
    now: dict[str, Any] = judged(goal, chip).info
    assert not worse(now, before), f"{goal.name} on {chip.name}: {'; '.join(worse(now, before))}"


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.name)
def test_a_goal_is_no_worse_than_it_was(goal: Goal) -> None:
    assert_no_worse(goal, H200)


@pytest.mark.slow
@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.name)
@pytest.mark.parametrize("chip", [A100, B200], ids=lambda chip: chip.name)
def test_nor_on_other_chips(goal: Goal, chip: Chip) -> None:
    assert_no_worse(goal, chip)
