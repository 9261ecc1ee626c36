"""How a method of a plan was written down, version by version, and how it is read today.

A plan says of every option what it is. Version 1 left out what stood at its default and called the
algorithm of a decomposition `method`; what it left out is what these defaults were then. Version 3
says how the ranks came about and knows more budgets, version 4 one of the whole model, version 5
which batch normalisations are folded first; methods are written as in version 2 there. Version 6
says of an SVD how gates are factored, which was together. Recipes of files have the version of
their method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from tensorlrf.decomposition.signatures import RENAMED
from tensorlrf.errors import ArgumentError, FileFormatError, shown

VERSION = 6
"""Of plans."""

METHODS = 6
"""Of methods in plans, and of what files say of layers: the last version that changed them."""

_SWEEPS: dict[str, Any] = {"n_iter_max": None, "tol": None}
_SKETCH: dict[str, Any] = {"method": "auto", "n_power_iter": 8, "n_oversample": 10}

LEFT_OUT: dict[str, dict[str, Any]] = {
    "svd": {**_SKETCH, "metric": "full"},
    "tucker": {
        "method": "hooi",
        **_SWEEPS,
        "n_power_iter": 2,
        "n_oversample": 10,
        "rank_shares": [0.7, 1.0],
    },
    "cp": {**_SWEEPS, "init": "random", "solver": "als", "n_samples": None, "n_restarts": 1},
    "auto": {"candidates": [{"name": "svd"}, {"name": "tucker"}, {"name": "cp"}]},
    "kron": {"shapes": None, **_SKETCH, **_SWEEPS},
    "tt": {"row_sizes": None, "column_sizes": None, "order": None, **_SWEEPS},
    "tr": {"sizes": None, "init": "svd", "mode": 0, "n_iter_max": 30, "tol": 1e-4},
    "blr": {"block": None, "dense_blocks": True, **_SWEEPS},
    "hierarchical": {"leaf": 64, "admissible": "weak", **_SWEEPS},
    "monarch": {"blocks": None, **_SWEEPS},
    "blast": {"blocks": None, **_SWEEPS},
}
"""A method -> its options in version 1, at the defaults that they had: of a ring, fewer sweeps than
today."""

RECIPE = {"method", "target", "data_aware", "affine"}
"""What a file of version 1 says of a layer that `compress` has made."""


def check_version(version: object, what: str = "text is a plan") -> int:
    """A version that can be read. Raises FileFormatError for a later one, and for what is none."""
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise FileFormatError(f"{what} of format version {shown(version)}, which there is not")
    if version > VERSION:
        raise FileFormatError(
            f"{what} of format version {version}, this is {VERSION}; update tensorlrf"
        )
    return version


def method_of(version: int, method: Any) -> Any:
    """The JSON of a method in a plan of that version as `METHODS` has it; what is none as it is."""
    if not isinstance(method, Mapping) or not isinstance(method.get("name"), str):
        return method
    values = dict(method)
    for step in range(version, METHODS):
        values = _NEXT[step](values)
    return values


def recipe_for(found: Any, target: str | None, affine: bool) -> dict[str, Any]:
    """How factors were made and how near they are, for the file of their layer. `found` has method,
    data_aware, weight_error, fit_error and held_error."""
    held = found.held_error
    return {
        "version": METHODS,
        "method": found.method.to_dict(),
        "target": target,
        "data_aware": found.data_aware,
        "affine": affine,
        "weight_error": _three_digits(found.weight_error),
        "output_error": _three_digits(found.fit_error if held is None else held),
    }


def _three_digits(error: float | None) -> float | None:
    return None if error is None or not math.isfinite(error) else float(f"{error:.3g}")


def recipe_of(recipe: Any) -> Any:
    """What a file says of how a layer was made, as this version says it; what somebody else has
    written there as it is."""
    if not isinstance(recipe, Mapping) or "version" in recipe or not set(recipe) >= RECIPE:
        return recipe
    return {"version": METHODS, **recipe, "method": method_of(1, recipe["method"])}


def _of_version_1(values: dict[str, Any]) -> dict[str, Any]:
    left_out = LEFT_OUT.get(values["name"], {})
    for old, new in RENAMED.items():
        if old in left_out and new in values:
            raise ArgumentError(f"{new}= is no option of version 1, which has {old}=")
    full = {"name": values["name"], "rank": None, "error": None, **left_out, **values}
    if "candidates" in full and isinstance(full["candidates"], list):
        full["candidates"] = [method_of(1, one) for one in full["candidates"]]
    return {RENAMED.get(o, o) if o in left_out else o: value for o, value in full.items()}


def _of_version_5(values: dict[str, Any]) -> dict[str, Any]:
    full = {"gates": "together", **values} if values["name"] == "svd" else dict(values)
    if isinstance(full.get("candidates"), list):
        full["candidates"] = [method_of(5, one) for one in full["candidates"]]
    return full


_NEXT: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: _of_version_1,
    **dict.fromkeys((2, 3, 4), dict),
    5: _of_version_5,
}
"""A version -> how a method of it is written in the next one."""
