"""Which layers are the same matrix of different experts of one mixture: a stack."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.nn.packed.unpacked import Unpacked

NUMBERED = re.compile(r"(?:.*expert\D*)?(\d+)")
"""One of several: `3`, or `expert_3`."""

Place = Callable[[list[str]], int | None]
"""Of the parts of a qualified name the one whose number tells alike layers apart; None for none."""


def alike(able: Mapping[str, DenseLayer], place: Place) -> list[list[str]]:
    """Layers of one shape whose names differ in one number alone, in its order."""
    groups: dict[tuple[Any, ...], list[tuple[int, str]]] = {}
    for name, layer in able.items():
        parts = name.split(".")
        k = place(parts)
        if k is not None:
            key = (".".join(parts[:k]), ".".join(parts[k + 1 :]), layer.shape)
            groups.setdefault(key, []).append((number_of(parts[k]), name))
    return [[name for _, name in sorted(found)] for found in groups.values() if len(found) > 1]


def depth(parts: list[str]) -> int | None:
    """The first number of a name."""
    return next((k for k, part in enumerate(parts) if part.isdecimal()), None)


def holder_in(model: nn.Module) -> Callable[[list[str]], int]:
    """Of the parts of a qualified name the one that is of what holds experts: what says so by its
    name, or an unpacked module that has some. As many as there are where none is."""
    holders = {
        name
        for name, module in model.named_modules()
        if isinstance(module, Unpacked) and hasattr(module, "num_experts")
    }

    def holder(parts: list[str]) -> int:
        places = range(len(parts))
        found = (
            k for k in places if "expert" in parts[k].lower() or ".".join(parts[: k + 1]) in holders
        )
        return next(found, len(parts))

    return holder


def expert_in(model: nn.Module) -> Place:
    """The first number within what holds experts."""
    holder = holder_in(model)

    def expert(parts: list[str]) -> int | None:
        first = holder(parts)
        numbered = (
            k
            for k in range(first, len(parts))
            if NUMBERED.fullmatch(parts[k].lower()) and (k > first or not parts[k].isdecimal())
        )
        return next(numbered, None)

    return expert


def by_mixture(model: nn.Module, found: Iterable[list[str]]) -> list[list[list[str]]]:
    """Stacks, together those of what one and the same module holds."""
    holder = holder_in(model)
    mixtures: dict[str, list[list[str]]] = {}
    for own in found:
        parts = own[0].split(".")
        mixtures.setdefault(".".join(parts[: holder(parts) + 1]), []).append(own)
    return list(mixtures.values())


def number_of(part: str) -> int:
    """Of a part of a name that has one."""
    found = NUMBERED.fullmatch(part.lower())
    assert found is not None
    return int(found[1])


def stacks(model: nn.Module, layers: Mapping[str, DenseLayer]) -> list[list[str]]:
    """The stacks among layers, each in the order of its experts."""
    able = {name: layer for name, layer in layers.items() if is_linear(layer)}
    return alike(able, expert_in(model))


def is_linear(layer: DenseLayer) -> bool:
    """Whether its weight is one matrix that multiplies rows."""
    return layer.taps is None and layer.groups == 1 and not layer.is_table


def told(names: list[str]) -> str:
    """One name for a stack of layers, a glob: `*` for the part in which they differ."""
    columns = zip(*(name.split(".") for name in names), strict=True)
    return ".".join(parts[0] if len(set(parts)) == 1 else "*" for parts in columns)
