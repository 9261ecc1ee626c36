"""Layers that may have a right factor in common, by the word or the globs of `shared=`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from tensorlrf.compression.bases._words import EXPERTS, INPUTS, LAYERS, WORDS
from tensorlrf.compression.calibration._dense_layer import DenseLayer, dense_layer_at
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration._shared_inputs import leaders
from tensorlrf.compression.calibration._trace import record
from tensorlrf.compression.plan._plan import LayerPlan
from tensorlrf.decomposition.configs import SVD
from tensorlrf.errors import ArgumentError

EXPERTS_IN = re.compile("expert")
"""What the module or the list that holds the experts of a mixture is called."""


@dataclass(frozen=True)
class Group:
    """Layers that may share, in order.

    apart  whether some neighbours of them may, and others by themselves, without a trial of all
    """

    names: tuple[str, ...]
    apart: bool = False


def groups_of(
    word: str, model: nn.Module, rows: Sequence[LayerPlan], data: Calibration | None
) -> list[Group]:
    """Groups of the layers with these rows of a plan. Raises ArgumentError for a glob of none."""
    able = {row.name: dense_layer_at(model, row.name) for row in rows if _may_share(row)}
    able = {name: layer for name, layer in able.items() if _is_linear(layer)}
    if word == INPUTS:
        assert data is not None
        return _of_inputs(model, list(able), data)
    if word == EXPERTS:
        return _alike(able, _expert)
    if word == LAYERS:
        return [Group(group.names, apart=True) for group in _alike(able, _depth)]
    if not any(fnmatchcase(place, word) for row in rows for place in row.places):
        raise ArgumentError(
            f"shared={word!r} is none of {', '.join(WORDS)}, and a glob that matches no layer that "
            f"gets factors; there are {', '.join(row.name for row in rows)[:300]}"
        )
    places = {row.name: row.places for row in rows}
    chosen = [n for n in able if any(fnmatchcase(place, word) for place in places[n])]
    return _by_columns(chosen, able)


def _may_share(row: LayerPlan) -> bool:
    """Whether it gets a low rank that is known, in the metric of all of its inputs."""
    return isinstance(row.method, SVD) and row.method.metric == "full" and row.rank is not None


def _is_linear(layer: DenseLayer) -> bool:
    return layer.taps is None and layer.groups == 1 and not layer.is_table


def _of_inputs(model: nn.Module, names: list[str], data: Calibration) -> list[Group]:
    """Layers that follow one another on the same tensor."""
    if not names:
        return []
    trace = record(model, names, data.batches[0])
    first = leaders(model, names, trace.after, lags=False)
    groups: dict[str, list[str]] = {}
    for name in trace.calls:
        groups.setdefault(first.get(name, name), []).append(name)
    return _several(groups.values())


def _alike(able: dict[str, DenseLayer], place: Any) -> list[Group]:
    """Layers of one shape whose names differ in one number alone, in its order."""
    groups: dict[tuple[Any, ...], list[tuple[int, str]]] = {}
    for name, layer in able.items():
        parts = name.split(".")
        k = place(parts)
        if k is not None:
            key = (".".join(parts[:k]), ".".join(parts[k + 1 :]), layer.shape)
            groups.setdefault(key, []).append((int(parts[k]), name))
    return _several([name for _, name in sorted(found)] for found in groups.values())


def _depth(parts: list[str]) -> int | None:
    """The first number of a name."""
    return next((k for k, part in enumerate(parts) if part.isdecimal()), None)


def _expert(parts: list[str]) -> int | None:
    """The first number within what holds experts."""
    holder = next((k for k, part in enumerate(parts) if EXPERTS_IN.search(part.lower())), None)
    within = [] if holder is None else range(holder + 1, len(parts))
    return next((k for k in within if parts[k].isdecimal()), None)


def _by_columns(names: Iterable[str], able: dict[str, DenseLayer]) -> list[Group]:
    groups: dict[int, list[str]] = {}
    for name in names:
        groups.setdefault(able[name].columns, []).append(name)
    return _several(groups.values())


def _several(groups: Iterable[list[str]]) -> list[Group]:
    return [Group(tuple(names)) for names in groups if len(names) > 1]
