"""Which batches are held out to judge by."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from torch import Tensor

from tensorlrf.errors import ArgumentError


def held_out(n: int, holdout: float) -> list[int]:
    """floor(holdout * n) of n, evenly spaced: one at the least, where there is one to fit to."""
    count = min(max(int(holdout * n + 1e-9), int(holdout > 0)), n - 1)
    return [round((k + 1) * n / count) - 1 for k in range(count)]


def groups_of(groups: Any, n: int) -> list[int]:
    """Of each of n batches the number of what it belongs to: batches that have a label in common,
    directly or through others, belong together.

    groups  of each batch a label, or the labels of its examples

    Raises ArgumentError for what is none.
    """
    if isinstance(groups, (str, bytes)) or not isinstance(groups, Iterable):
        raise ArgumentError(
            f"groups is a {type(groups).__name__}; give a label for each batch, or the labels of "
            "the examples in it"
        )
    labels = [_labels(one) for one in groups]
    if len(labels) != n:
        raise ArgumentError(
            f"groups has {len(labels)} entries for {n} batches; give a label for each batch, or "
            "the labels of the examples in it"
        )
    number: dict[Hashable, int] = {}
    found: list[int] = []
    for k, own in enumerate(labels):
        try:
            known = sorted({number[label] for label in own if label in number})
        except TypeError:
            raise ArgumentError(
                f"groups: the labels of batch {k} must be hashable, as names and numbers are"
            ) from None
        first = known[0] if known else k
        for label in own:
            number[label] = first
        for other in known[1:]:
            number = {label: first if g == other else g for label, g in number.items()}
            found = [first if g == other else g for g in found]
        found.append(first)
    return found


def whole_groups_held_out(groups: Sequence[int], holdout: float) -> list[int]:
    """The batches of whole groups, about `holdout` of all batches, from evenly spaced groups.

    Raises ArgumentError where there is no second group to fit to.
    """
    if not holdout:
        return []
    kinds = list(dict.fromkeys(groups))
    if len(kinds) < 2:
        raise ArgumentError(
            "groups: all batches belong together, so that none can be held out; give batches of "
            "another group, or holdout=0"
        )
    sizes = {kind: groups.count(kind) for kind in kinds}
    room = max(int(holdout * len(groups) + 1e-9), min(sizes.values()))
    first = [kinds[k] for k in held_out(len(kinds), holdout)]
    chosen: list[int] = []
    for kind in (*first, *(k for k in kinds if k not in first)):
        if sizes[kind] <= room and len(chosen) < len(kinds) - 1:
            chosen.append(kind)
            room -= sizes[kind]
    return [k for k, kind in enumerate(groups) if kind in chosen]


def _labels(entry: Any) -> list[Hashable]:
    if isinstance(entry, Tensor):
        entry = entry.tolist()
    many = isinstance(entry, Iterable) and not isinstance(entry, (str, bytes, tuple))
    return list(entry) if many else [entry]
