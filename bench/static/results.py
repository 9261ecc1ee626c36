"""The tables that are kept, and what of them no later launch may exceed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from bench.report import Row
from bench.static.goals import GOALS, Goal, launch_of
from bench.static.judge import judge
from tensorlrf_kernels._tables import triton_version
from tensorlrf_kernels.chips import KNOWN, Chip

FOLDER = Path(__file__).parent.parent / "results" / "static"
NOTE = (
    "Compiled, nothing run. Instructions are of one warp; loops: those of every pass + those of "
    "some. The bounds are arithmetic (model): bench/static/judge.py says how."
)


def stem() -> str:
    """The name of this Triton's table."""
    return f"triton-{triton_version()}"


def judged(goal: Goal, chip: Chip) -> Row:
    """A row of the table."""
    info = judge(goal, launch_of(goal, chip), chip).to_json()
    return Row(goal.name, chip.name, 0.0, 0.0, 0, info)


@cache
def kept() -> Mapping[tuple[str, str], Mapping[str, Any]]:
    """Rows of this Triton's table, by goal and chip; none where it has no table."""
    path = FOLDER / f"{stem()}.json"
    if not path.is_file():
        return {}
    rows = json.loads(path.read_text())["rows"]
    return {(row["case"], row["variant"]): row["info"] for row in rows}


def among(former: Mapping[tuple[str, str], Mapping[str, Any]], rows: Sequence[Row]) -> list[Row]:
    """The rows with the former ones that they do not replace, in the order of goals and chips."""
    made = {(row.case, row.variant): row for row in rows}
    for (case, chip), info in former.items():
        made.setdefault((case, chip), Row(case, chip, 0.0, 0.0, 0, dict(info)))
    order = [(goal.name, chip) for chip in KNOWN for goal in GOALS]
    return [made[key] for key in order if key in made]


BOUNDED = ("registers", "spilled", "shared", "waves", "fences")


def worse(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """What of a row exceeds what was kept of it: numbers, and instructions of a unit of work."""
    found = [f"{k} {now[k]}, was {before[k]}" for k in BOUNDED if now[k] > before[k]]
    mine, former = now["per_unit"], before["per_unit"]
    if former is not None and (mine is None or mine > former):
        found.append(f"{mine} instructions a {now['unit']}, were {former}")
    less = [
        f"{k} {now[k]}, was {before[k]}" for k in ("resident", "streamed") if now[k] < before[k]
    ]
    return found + less
