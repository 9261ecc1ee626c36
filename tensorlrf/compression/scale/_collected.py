"""Moments that were collected of the model of a checkpoint: whether of that very one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tensorlrf.compression.calibration._dense_layer import DenseLayer, dense_layer_at
from tensorlrf.compression.calibration._memory import some
from tensorlrf.compression.fit._factor import SAMPLES_PER_COLUMN
from tensorlrf.compression.moments._fitted import check_weights
from tensorlrf.compression.moments._layer import Weight, places
from tensorlrf.compression.moments._moments import Moments
from tensorlrf.compression.moments._rows import by_name
from tensorlrf.compression.plan._plan import LayerPlan
from tensorlrf.compression.scale._run import weight_of
from tensorlrf.compression.scale.architecture import Architecture
from tensorlrf.compression.scale.stored import StoredTensors
from tensorlrf.errors import ArgumentError, CalibrationWarning, warn
from tensorlrf.files.arguments import PathLike
from tensorlrf.files.safetensors import opened


def collected(
    given: Moments | PathLike | None,
    known: Architecture,
    stored: StoredTensors,
    rows: Sequence[LayerPlan],
    *,
    alone: bool,
) -> Moments | None:
    """The moments that a user gives, for layers that are to be factored; None for none. `alone`:
    whether there are no batches beside them.

    Of each weight that they are of, a few numbers are read. Raises ArgumentError, naming the first
    layer that differs, where they are of another model, and what `Moments.load` raises.
    """
    if given is None:
        return None
    if not alone:
        raise ArgumentError("moments= are in the place of calibration=; give one of them")
    moments = given if isinstance(given, Moments) else Moments.load(given)
    layers = {one.name for one in known.survey() if weight_of(one.name) in known.sources}
    of = {
        row.name: _weight(row.name, known, stored) for row in moments.layers if row.name in layers
    }
    check_weights(moments, of, whole=False)
    _warn(moments, rows)
    return moments


def _weight(name: str, known: Architecture, stored: StoredTensors) -> Weight:
    """Of a layer of the checkpoint, as `Weight.of` has it."""
    layer, place = dense_layer_at(known.model, name), stored.places[known.sources[weight_of(name)]]
    shape = layer.shape
    if place.info.shape != tuple(layer.module.weight.shape):
        return Weight(shape, place.info.dtype, ())
    with opened(place.file) as file:
        numbers = file.numbers(known.sources[weight_of(name)], _flat(layer, shape))
    return Weight(shape, place.info.dtype, tuple(numbers.to(torch.float64).tolist()))


def _flat(layer: DenseLayer, shape: tuple[int, ...]) -> list[int]:
    """Where in the stored tensor the numbers of a weight are that are looked at."""
    own = tuple(layer.module.weight.shape)
    if layer.plain.is_transposed and layer.groups > 1:  # no view
        at: Tensor = layer.plain.outputs_first(
            torch.arange(layer.module.weight.numel(), device="cpu").reshape(own)
        )
        return [int(at[index]) for index in places(shape)]
    strides = layer.plain.outputs_first(torch.empty(own, dtype=torch.uint8, device="meta")).stride()
    return [sum(k * s for k, s in zip(index, strides, strict=True)) for index in places(shape)]


def _warn(moments: Moments, rows: Sequence[LayerPlan]) -> None:
    """Of layers of which little is known, or nothing."""
    known = by_name(moments.layers)
    missed = [row.name for row in rows if row.name not in known or not known[row.name].count]
    if missed:
        warn(
            f"moments= have none of {some(missed)}: the plain method is used there; calibrate "
            "these as well, or skip= them",
            CalibrationWarning,
        )
    thin = [
        f"{name} ({known[name].count:,} samples, n = {known[name].columns:,})"
        for name in (row.name for row in rows if row.name not in missed)
        if known[name].count < SAMPLES_PER_COLUMN * known[name].columns
        and known[name].form != "counts"
    ]
    if thin:
        warn(
            f"moments= are thin for {some(thin)}: with fewer than {SAMPLES_PER_COLUMN} n samples "
            "(rows, or patches of a conv) the factors fit the samples more than the data; add "
            "those of more batches",
            CalibrationWarning,
        )
