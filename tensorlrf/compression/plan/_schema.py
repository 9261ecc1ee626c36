"""The entries of a plan's JSON, and their types."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import NoneType
from typing import Any

from tensorlrf.compression.plan.allocation import AUTO, RULES, Allotment
from tensorlrf.compression.plan.budget import BUDGETS, TOTAL
from tensorlrf.compression.report._json import read_dataclass
from tensorlrf.compression.report._rows import FoldedNorms
from tensorlrf.errors import FileFormatError, shown

_TEXT: tuple[type, ...] = (str,)
_SHARE: tuple[type, ...] = (float, int, NoneType)
_OLD: dict[str, tuple[type, ...]] = {
    "architecture": _TEXT,
    "keep_params": _SHARE,
    "error": _SHARE,
}
_BUDGETED: dict[str, tuple[type, ...]] = {
    "architecture": _TEXT,
    **dict.fromkeys(BUDGETS, _SHARE),
    "allotment": (dict,),
}
PLAN: dict[int, dict[str, tuple[type, ...]]] = {
    1: _OLD,
    2: _OLD,
    3: {
        "architecture": _TEXT,
        **{word: _SHARE for word in BUDGETS if word != TOTAL},
        "allotment": (dict,),
    },
    4: _BUDGETED,
    5: {**_BUDGETED, "folded": (dict, NoneType)},
}
"""Version -> what a plan of it says beside its layers. Before version 3 ranks were uniform."""
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
    """Raise FileFormatError unless each budget is null or a share, and one at the most is given."""
    given = [entry for entry in BUDGETS if values.get(entry) is not None]
    for entry in given:
        if not 0 < values[entry] <= 1:
            raise FileFormatError(
                f"text is no plan: {entry} is {values[entry]!r}, not a share in (0, 1]"
            )
    if len(given) > 1:
        raise FileFormatError(f"text is no plan: {' and '.join(given)} are two budgets")


def allotment_of(values: Any) -> Allotment:
    """As `dataclasses.asdict` wrote it. Raises ValueError or FileFormatError for anything else."""
    made = read_dataclass(Allotment, values, "allotment")
    numbers = (
        made.predicted_loss, made.dense_cost, made.cost, made.promised_cost, made.corrections,
        *(c.loss for c in made.candidates),
    )  # fmt: skip
    if not all(n is None or 0 <= n < math.inf for n in numbers):
        raise FileFormatError("text is no plan: allotment has a number that is no loss, or no cost")
    for rule in (made.rule, *(c.rule for c in made.candidates)):
        if rule == AUTO or rule not in RULES:
            raise FileFormatError(f"text is no plan: allotment has the rule {shown(rule)}")
    return made


def folded_of(values: Any) -> FoldedNorms:
    """Likewise: normalisations, each with a layer of its own that it goes into."""
    made = read_dataclass(FoldedNorms, values, "folded")
    sizes = {len(made.norms), len(made.layers), len(set(made.norms)), len(set(made.layers))}
    if len(sizes) > 1:
        raise FileFormatError(
            f"text is no plan: folded has the norms {shown(made.norms)} and the layers "
            f"{shown(made.layers)}; it must name each norm once, and a layer for each"
        )
    return made
