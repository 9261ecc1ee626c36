"""Folding as a part of `compress`, and of the way back from a file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tensorlrf.compression._exchange import exchanged
from tensorlrf.compression._working_copy import put
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration.batches import Batch
from tensorlrf.compression.folding._behind import behind
from tensorlrf.compression.folding._fold import folded_by, folded_into
from tensorlrf.compression.report._rows import FoldedNorms
from tensorlrf.errors import ArgumentError
from tensorlrf.nn import FactoredLayer
from tensorlrf.nn.plain import base_of


def folded_before(
    model: nn.Module, data: Calibration | None, example: Any
) -> tuple[nn.Module, FoldedNorms]:
    """The model with normalisations folded that can be, by the example or the first batch of the
    calibration, and what became of each. Raises ArgumentError where there is neither."""
    if example is None and data is None:
        raise ArgumentError(
            "fold_batch_norms=True looks at a pass of the model, to see what is read by whom; give "
            "example= or calibration="
        )
    batch = data.first if example is None and data is not None else Batch.of(example)
    folded, found, left = folded_into(model, batch)
    told = tuple(f"{name}: {why}" for name, why in left.items())
    return folded, FoldedNorms(tuple(found), tuple(found.values()), told)


def folded_as(
    model: nn.Module, folded: FoldedNorms, data: Calibration | None, example: Any
) -> nn.Module:
    """The model with normalisations folded as a plan has them. Raises ArgumentError where that
    cannot be: by what the model has, and where there is an example or a calibration by its outputs
    on it."""
    batch = None if data is None else data.first
    batch = batch if example is None else Batch.of(example)
    return folded_by(model, dict(zip(folded.norms, folded.layers, strict=True)), batch)


def take_folds(model: nn.Module, small: nn.Module, folded: FoldedNorms) -> None:
    """Have a model, in place, hold what `small` has where normalisations were folded; its factored
    layers are there already."""
    places: dict[nn.Module, list[str]] = {}
    for place, module in model.named_modules(remove_duplicate=False):
        places.setdefault(module, []).append(place)
    for norm, layer in zip(folded.norms, folded.layers, strict=True):
        own: Any = model.get_submodule(layer)
        made: Any = small.get_submodule(layer)
        if not isinstance(own, FactoredLayer):
            with torch.inference_mode(own.weight.is_inference()), torch.no_grad():
                own.weight.copy_(made.weight)
            own.bias = made.bias
        gone = model.get_submodule(norm)
        put(model, places[gone], behind(gone))


def with_folds(
    model: nn.Module, architecture: Mapping[str, str] | None, tensors: Collection[str]
) -> nn.Module:
    """The architecture of a file that was written after folding, of that before it: normalisations
    that are gone there are gone, and layers have a bias that have got one.

    architecture  of the file, name of a module -> what it is
    tensors       the names of those in the file
    """
    names = {m: n for n, m in model.named_modules()}
    if architecture is None:
        return model

    def new(module: nn.Module) -> nn.Module | None:
        name = names.get(module)
        if name is None:
            return None
        if isinstance(module, _BatchNorm):
            rest = behind(module)
            if architecture.get(name) == f"{type(rest).__name__}()":
                return rest
        missing = base_of(module) is not None and module._parameters.get("bias", module) is None
        return _with_bias(module) if missing and f"{name}.bias" in tensors else None

    return exchanged(model, new)


def _with_bias(layer: Any) -> nn.Module:
    """The layer with a bias that has no values yet."""
    twin: Any = object.__new__(type(layer))
    vars(twin).update(vars(layer))
    out = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    blank = torch.empty(out, dtype=layer.weight.dtype, device="meta")
    bias = nn.Parameter(blank, requires_grad=layer.weight.requires_grad)
    twin._parameters = {**layer._parameters, "bias": bias}
    return twin  # type: ignore[no-any-return]
