"""Which layers would not get faster: they are found before anything is factored.

Times do not depend on values, so factors of the planned rank with any values tell. Alone a layer is
measured hot, so that what gains little there is tried in the whole model: with all that gain
anything, and without those that gain least.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from tensorlrf.compression._latency import times_of
from tensorlrf.compression.calibration._dense_layer import dense_layer_at
from tensorlrf.compression.calibration.batches import Batch
from tensorlrf.compression.plan._drafts import Draft
from tensorlrf.compression.plan._plan import LayerPlan
from tensorlrf.compression.plan._stand_ins import blank_inputs, factored_layer, filled
from tensorlrf.compression.plan.allocation import Allotment
from tensorlrf.compression.plan.times._seconds import CallTimes, LayerTimes, Sample
from tensorlrf.compression.plan.times._whole import Whole
from tensorlrf.decomposition.configs import Method, Structured
from tensorlrf.errors import ArgumentError
from tensorlrf.nn.copies import replica
from tensorlrf.ops.buckets import bucket

NOISE = 0.05
"""A gain below this is none."""

MARGINS = (NOISE, 0.15, 0.3)
"""Of gains alone, above which layers are factored; tried in the whole model."""

SECONDS = 0.2
"""That the timing of a layer takes, about."""


def without_slow(
    model: nn.Module, drafts: Sequence[Draft], example: Any, allotment: Allotment
) -> tuple[list[Draft], Allotment]:
    """The drafts with those left that are no faster on factors, with the reason: alone, timed on
    the inputs that the example brings them, or together, by passes of the whole model, whose times
    are in the allotment. Layers that it does not reach are not judged.

    Raises ArgumentError where there is no example, for one that the model cannot take, and for
    ranks that the fit decides.
    """
    methods = {draft.name: draft.method for draft in drafts if draft.method is not None}
    whole = Whole(model, Sample(Batch.of(example), "example"), _times(model, methods, example))
    gains = {name: 1 - _factored(times) / times.dense for name, times in whole.times.items()}
    sets = {f"{m:g}": {name for name, g in gains.items() if g > m} for m in MARGINS}
    others = {name for name in methods if name not in gains}
    chosen, cost = sets[f"{NOISE:g}"], None
    if chosen:
        models = {name: whole.stand_in(_rows(drafts, keep | others)) for name, keep in sets.items()}
        seconds = whole.in_turn(models)
        chosen = sets[min(sets, key=seconds.median)]
        # What was picked out of several for its times looks faster than it is.
        cost = whole.ratio(_rows(drafts, chosen | others))
        chosen = chosen if cost[0] < 1 else set()
    left = [
        d.left(_why(whole.times[d.name])) if d.name in gains and d.name not in chosen else d
        for d in drafts
    ]
    allotment = allotment if chosen == set(gains) else allotment.edited()
    if cost is None or not chosen:
        return left, allotment
    ratio, dense = cost
    promised = whole.promised(_rows(left, chosen), dense)
    return left, replace(allotment, dense_cost=dense, cost=ratio * dense, promised_cost=promised)


def _times(model: nn.Module, methods: Mapping[str, Method], example: Any) -> dict[str, LayerTimes]:
    """Of the layers that the example reaches, at the rank of their method."""
    if example is None:
        raise ArgumentError("objective='latency' needs example=, a batch to time the layers on")
    for name, method in methods.items():
        decided = isinstance(method.rank, float) and not isinstance(method, Structured)
        if method.error is not None or decided:
            raise ArgumentError(
                f"objective='latency' times layers at their rank, but that of {name} is decided by "
                "the fit; give keep_params= with one method, or ranks"
            )
    working = replica(model)
    names_of = {dense_layer_at(working, name).module: name for name in methods}
    inputs = blank_inputs(working, names_of, example, "example")
    found = {}
    for name, method in methods.items():
        if name not in inputs:
            continue
        layer = dense_layer_at(working, name)
        x = filled(inputs[name][0], layer.device)
        new = factored_layer(layer, method)
        dense, ((best, path),) = times_of(layer.module, [new], x, seconds=SECONDS)
        size = float(new.factors.n_params)
        one = CallTimes(bucket(new._rows(x)), dense, (size,), (best,), (path,))
        found[name] = LayerTimes(((one, len(inputs[name])),))
    return found


def _factored(times: LayerTimes) -> float:
    """Seconds of all calls at the one size that there is."""
    return times.at(0)


def _why(times: LayerTimes) -> str:
    one, _ = times.calls[0]
    told = f"{one.at(0) * 1e3:.3g} ms against {one.dense * 1e3:.3g} ms dense on the example"
    if one.at(0) > (1 - NOISE) * one.dense:
        return f"no faster on factors: {told}"
    return f"the whole model is no faster with it on factors; alone it takes {told}"


def _rows(drafts: Sequence[Draft], names: Collection[str]) -> list[LayerPlan]:
    return [draft.row() for draft in drafts if draft.name in names]
