"""What was chosen for each layer: its row of the result, and how it is written into the model."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from tensorlrf.compression._latency import TORCH, resident_bytes, torch_layer
from tensorlrf.compression._survey import ROOT
from tensorlrf.compression.tuning._passes import Seen, layout_for
from tensorlrf.compression.tuning._tuning import BucketTiming, LayerTuning
from tensorlrf.compression.tuning._whole import chosen_for
from tensorlrf.nn import FactoredLayer, FactoredLinear
from tensorlrf.nn.tall import lies_by_columns
from tensorlrf.ops import PathTable
from tensorlrf.ops.buckets import BUCKETS


def table_of(layer: FactoredLayer, chosen: Mapping[int, str], frozen: bool) -> PathTable:
    """The path table of a layer with measured choices, bucket -> path."""
    by_cost = layer._default_path_table(frozen)
    choices = {}
    for rows in BUCKETS:
        below = max((b for b in chosen if b <= rows), default=None)
        above = min((b for b in chosen if b >= rows), default=None)
        if below is not None and above is not None and chosen[below] == chosen[above]:
            choices[rows] = chosen[below]
        else:
            choices[rows] = by_cost.lookup(rows)
    return PathTable.from_choices(choices)


def tables_of(
    timed: Mapping[FactoredLayer, Sequence[BucketTiming]], freezable: Container[FactoredLayer]
) -> dict[FactoredLayer, PathTable]:
    return {
        layer: table_of(
            layer,
            {one.bucket: one.chosen for one in rows},
            layer in freezable and any(one.chosen == "dense" for one in rows),
        )
        for layer, rows in timed.items()
    }


# ---- what comes out -----------------------------------------------------------------------------


def row_of(
    model: nn.Module,
    layer: FactoredLayer,
    names: list[str],
    objective: str,
    timings: list[BucketTiming],
    freezable: bool,
    by_columns: tuple[str, ...],
) -> LayerTuning:
    factors = layer.factors
    frozen = freezable and any(one.chosen == "dense" for one in timings)
    row = LayerTuning(
        name=names[0],
        places=tuple(names),
        kind=layer.stands_for,
        format=factors.format,
        rank=factors.rank,
        device_key=layer._key(frozen),
        timings=tuple(timings),
        replaced=False,
        frozen=frozen,
        note="",
        factor_bytes=factors.n_bytes,
        dense_bytes=resident_bytes(layer, freeze=frozen)[TORCH],
        by_columns=by_columns,
    )
    if objective == "size" or not row.dense_wins:
        return row
    reason = _why_not_dense(model, layer, names)
    note = f"is fastest dense, but {reason}; it keeps its factors" if reason else ""
    return replace(row, replaced=not reason, frozen=frozen and bool(reason), note=note)


def _why_not_dense(model: nn.Module, layer: FactoredLayer, names: list[str]) -> str:
    """Why torch's dense layer cannot take its place; empty where it can."""
    if ROOT in names:
        return "it is the model itself, which cannot be replaced in place (see tensorlrf.densify)"
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(layer, name) for name in hooks):
        return "it has hooks, which a new layer would not have"
    if "forward" in vars(layer):
        return "its forward is replaced on the instance"
    if is_parametrized(layer):
        return "its factors are parametrised"
    own = {id(p) for p in layer.parameters()}
    for module in model.modules():
        if module is not layer and own & {id(p) for p in module._parameters.values()}:
            return "it shares parameters with another module"
    return ""


def _by_columns(layer: FactoredLinear) -> tuple[str, ...]:
    """Its parameters that lie so now."""
    return tuple(n for n in layer.tall_matrices() if lies_by_columns(layer.get_parameter(n)))


def commit(
    model: nn.Module,
    seen: Seen,
    rows: dict[FactoredLayer, LayerTuning],
) -> None:
    """Write the choices into the model: all of them or, when interrupted, none."""
    dense = {}
    for layer, row in rows.items():
        if row.replaced:
            last = any(one.channels_last for one in seen[layer].values())
            dense[layer] = torch_layer(layer, channels_last=last)
    with ExitStack() as undo:
        for layer, row in rows.items():
            undo.callback(vars(layer).update, chosen_for(layer), measured=dict(layer.measured))
            if isinstance(layer, FactoredLinear):
                undo.callback(layer.lie, _by_columns(layer))
                layer.lie(row.by_columns)
            if row.frozen:
                layer.freeze(memory_format=layout_for(layer, seen))
            else:
                layer.thaw()
            # What was measured of the layer in its other state is no longer its choice.
            layer.measured.pop(layer._key(not row.frozen), None)
            chosen = {one.bucket: one.chosen for one in row.timings}
            layer.set_measured(layer.device_key, table_of(layer, chosen, row.frozen))
            for place in row.places if row.replaced else ():
                parent, _, child = place.rpartition(".")
                holder = model.get_submodule(parent)
                undo.callback(setattr, holder, child, layer)
                setattr(holder, child, dense[layer])
        undo.pop_all()
