"""The rows of two calibrations of one model as those of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tensorlrf.compression.moments._layer import CalibratedLayer
from tensorlrf.errors import ArgumentError

Rows = Mapping[str, CalibratedLayer]
"""By layer."""


def by_name(layers: Sequence[CalibratedLayer]) -> dict[str, CalibratedLayer]:
    """The rows of moments."""
    return {row.name: row for row in layers}


def both(one: Rows, other: Rows) -> dict[str, CalibratedLayer]:
    """Raises ArgumentError, naming the first layer that differs, where they cannot be added."""
    for name in [*one, *other]:
        if name not in one or name not in other:
            raise ArgumentError(
                f"moments that are added are of one model and the same layers: {name} is in one "
                "and not in the other; calibrate both with the same skip= and include="
            )
    return {name: _row(name, one, other) for name in one}


def _row(name: str, one: Rows, other: Rows) -> CalibratedLayer:
    a, b = one[name], other[name]
    why = a.weight.why_not(b.weight)
    if not why and a.groups != b.groups:
        why = f"is of {a.groups} groups in the one and of {b.groups} in the other"
    if why:
        raise ArgumentError(f"moments that are added are of one model: the weight of {name} {why}")
    if a.count and b.count and a.kept != b.kept:
        raise ArgumentError(
            f"moments that are added are kept alike: those of {name} are {a.form} in one and "
            f"{b.form} in the other; calibrate both with the same memory_limit="
        )
    kept = a.kept if a.count else b.kept
    return replace(a, kept=kept, count=a.count + b.count, like=_like(a, b, one, other))


def _like(a: CalibratedLayer, b: CalibratedLayer, one: Rows, other: Rows) -> str:
    """The layer that was fed the same in both."""
    if a.like == b.like:
        return a.like
    for own, others, like in ((a, one, b.like), (b, other, a.like)):
        if like and not own.count and not others[like].count:
            return like
    return ""
