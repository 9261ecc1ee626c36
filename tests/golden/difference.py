"""What differs between two texts, with the heading that it stands under."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from typing import Any

MOST_LINES = 200


def difference(kept: str, now: str) -> str:
    """Empty where there is none; else the lines that changed, "-" as kept and "+" as now, each
    group under the nearest line above it that is indented less."""
    if kept == now:
        return ""
    old, new = kept.splitlines(), now.splitlines()
    lines: list[str] = []
    for tag, i, i_end, j, j_end in SequenceMatcher(None, old, new, False).get_opcodes():
        if tag == "equal":
            continue
        lines += (f"  {line}" for line in headings(old, i))
        lines += (f"- {line}" for line in old[i:i_end])
        lines += (f"+ {line}" for line in new[j:j_end])
    more = len(lines) - MOST_LINES
    return "\n".join([*lines[:MOST_LINES], *([f"... {more} lines more"] if more > 0 else [])])


def headings(lines: list[str], number: int) -> list[str]:
    """Of the line of that number: the lines above it that it is indented under."""
    found: list[str] = []
    depth = _depth(lines[number]) if number < len(lines) else 0
    for line in reversed(lines[:number]):
        if _depth(line) < depth:
            depth = _depth(line)
            found.insert(0, line)
    return found


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def as_lines(value: Any) -> str:
    """A line for every value of a nested mapping, under the keys that lead to it."""
    return "\n".join(_as_lines(value, 0)) + "\n"


def _as_lines(value: Any, depth: int) -> Iterator[str]:
    for key, one in value.items():
        if isinstance(one, Mapping) and one:
            yield f"{' ' * depth}{key}"
            yield from _as_lines(one, depth + 1)
        else:
            yield f"{' ' * depth}{key}: {json.dumps(one)}"
