"""JSON values, changed in one place."""

from __future__ import annotations

from typing import Any

Way = tuple[Any, ...]


def ways(value: Any, at: Way = ()) -> list[Way]:
    """The keys and indices that lead to every value within, the outer ones first."""
    found = [at] if at else []
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            found += ways(value[key], (*at, key))
    return found


def put(values: Any, at: Way, value: Any) -> None:
    """In that place; ... takes out what is there."""
    *outer, last = at
    for key in outer:
        values = values[key]
    if value is ...:
        del values[last]
    else:
        values[last] = value
