"""Words and numbers as plans and reports put them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def rank_words(rank: Any) -> str:
    """An int as it is, ranks of several modes with commas."""
    return ", ".join(map(str, rank)) if isinstance(rank, tuple) else str(rank)


def error_words(value: float | None) -> str:
    """Three digits, a dash where it is not known."""
    return "-" if value is None else f"{value:.3g}"


def short(number: float) -> str:
    """1.23 G for 1.23e9."""
    for unit in ("", " k", " M", " G", " T"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} P"


def bytes_words(number: float) -> str:
    """1.23 MB for 1.23e6."""
    return short(number) + ("B" if number >= 1000 else " B")


def duration(seconds: float) -> str:
    """40 s, 3 min, 2 h 5 min."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def staying(layers: Sequence[Any], params: str) -> list[str]:
    """A line for each layer that stays; modules of no format are put together by their type.

    layers  of a plan or a report; `params` names where they keep their number of parameters
    """
    lines = []
    together: dict[tuple[str, str], list[Any]] = {}
    for row in layers:
        if row.factored:
            continue
        if "Linear" in row.kind or "Conv" in row.kind or row.eligible:
            lines.append(f"stays: {row.name} ({row.kind}, {getattr(row, params):,}): {row.reason}")
        else:
            together.setdefault((row.kind, row.reason), []).append(row)
    for (kind, reason), rows in together.items():
        numbers = sum(getattr(row, params) for row in rows)
        names = rows[0].name if len(rows) == 1 else f"{len(rows)} modules, {rows[0].name} the first"
        lines.append(f"stays: {names} ({kind}, {numbers:,}): {reason}")
    return lines
