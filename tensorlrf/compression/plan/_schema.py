"""The entries of a plan's JSON, and their types."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any

from tensorlrf.errors import FileFormatError, shown

_TEXT: tuple[type, ...] = (str,)
PLAN: dict[str, tuple[type, ...]] = {
    "architecture": _TEXT,
    "keep_params": (float, int, NoneType),
    "error": (float, int, NoneType),
}
LAYER: dict[str, tuple[type, ...]] = {
    "name": _TEXT,
    "places": (list,),
    "kind": _TEXT,
    "shape": (list,),
    "groups": (int,),
    "method": (dict, NoneType),
    "params": (int,),
    "eligible": (bool,),
    "reason": _TEXT,
}
_ENTRIES: dict[str, type] = {"places": str, "shape": int}


def check_types(values: Any, types: Mapping[str, tuple[type, ...]], where: str) -> None:
    """Raise FileFormatError unless the entries are just these, each of its type."""
    if set(values) != set(types):
        raise FileFormatError(
            f"text is no plan: {where} has the entries {', '.join(sorted(values))}; they must be "
            f"{', '.join(types)}"
        )
    for entry, kinds in types.items():
        value = values[entry]
        inner = _ENTRIES.get(entry)
        good = type(value) in kinds and (inner is None or all(type(v) is inner for v in value))
        if not good:
            words = " or ".join("null" if k is NoneType else k.__name__ for k in kinds)
            of = "" if inner is None else f" of {inner.__name__}"
            raise FileFormatError(
                f"text is no plan: {entry} of {where} is {shown(value)}, not {words}{of}"
            )


def check_budgets(values: Mapping[str, Any]) -> None:
    """Raise FileFormatError unless each budget is null or a share."""
    for entry in ("keep_params", "error"):
        value = values[entry]
        if value is not None and not 0 < value <= 1:
            raise FileFormatError(f"text is no plan: {entry} is {value!r}, not a share in (0, 1]")
