"""Layers that may have a right factor in common, by the word or the globs of `shared=`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from tensorlrf.compression.bases._words import EXPERTS, INPUTS, LAYERS, WORDS
from tensorlrf.compression.calibration._dense_layer import DenseLayer, dense_layer_at
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration._shared_inputs import leaders
from tensorlrf.compression.calibration._trace import record
from tensorlrf.compression.calibration.stacks._stacks import alike, depth, expert_in, is_linear
from tensorlrf.compression.plan._plan import LayerPlan
from tensorlrf.decomposition.configs import SVD
from tensorlrf.errors import ArgumentError


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
    able = {name: layer for name, layer in able.items() if is_linear(layer)}
    if word == INPUTS:
        assert data is not None
        return _of_inputs(model, list(able), data)
    if word == EXPERTS:
        return [Group(tuple(names)) for names in alike(able, expert_in(model))]
    if word == LAYERS:
        return [Group(tuple(names), apart=True) for names in alike(able, depth)]
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


def _by_columns(names: Iterable[str], able: dict[str, DenseLayer]) -> list[Group]:
    groups: dict[int, list[str]] = {}
    for name in names:
        groups.setdefault(able[name].columns, []).append(name)
    return _several(groups.values())


def _several(groups: Iterable[list[str]]) -> list[Group]:
    return [Group(tuple(names)) for names in groups if len(names) > 1]
