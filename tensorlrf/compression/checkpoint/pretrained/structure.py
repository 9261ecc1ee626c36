"""The layers that a `Quantization` tells of, in a model of transformers without values."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression._unpacked import unpacked_for
from tensorlrf.compression._working_copy import put
from tensorlrf.compression.checkpoint._latents import give_latents
from tensorlrf.compression.checkpoint._layers import blank_factors, blank_layer
from tensorlrf.compression.checkpoint._rebuild import may_freeze
from tensorlrf.compression.checkpoint._sizes import with_sizes
from tensorlrf.compression.checkpoint.named_tensors import joined
from tensorlrf.compression.checkpoint.pretrained.quantization import Quantization
from tensorlrf.compression.folding._within import with_folds
from tensorlrf.compression.ranks._table import give_table
from tensorlrf.errors import ArgumentError, FileFormatError
from tensorlrf.nn import FactoredLayer
from tensorlrf.nn.convolutions.baked import baked


def seen_from(model: nn.Module, told: Quantization, prefix: str) -> Quantization:
    """What is told of a model, by the names of `model`: the same, its body, or one with a head.

    prefix  of the body in a model that has one
    """
    modules = {name for name, _ in model.named_modules(remove_duplicate=False)}
    if all(place in modules for one in told.layers for place in one.places):
        return told

    def name(old: str) -> str | None:
        bare = old.removeprefix(f"{prefix}.") if prefix else old
        options = (old, bare, joined(prefix, old) if prefix else old)
        return next((one for one in options if one in modules), None)

    return told.renamed(name)


def give_structure(model: nn.Module, told: Quantization, names: Collection[str], path: str) -> None:
    """Have a model the layers that are told of, in place and on the meta device.

    names  of the tensors in the files

    Raises FileFormatError, UnsupportedError where a layer does not fit.
    """
    folded = dict.fromkeys(told.folded, "Identity()")
    new = with_sizes(with_folds(model, folded, names), told.resized, path)
    inside = {*names, *(place for one in told.layers for place in one.places)}
    new = unpacked_for(new, inside)
    if new is not model:
        vars(model).update(vars(new))
    for entry in told.layers:
        place = entry.places[0]
        try:
            like = model.get_submodule(place)
        except AttributeError:
            raise FileFormatError(
                f"path={path!r} does not fit model: {place!r} is a layer that it does not have"
            ) from None
        dtype = _dtype_of(like)
        bias = joined(place, "bias") in names if entry.bias is None else entry.bias
        factors = blank_factors(entry, path, dtype)
        layer = blank_layer(entry, factors, bias, baked(like) or like, path)
        layer.recipe = copy.deepcopy(told.plan.get(place, {}))
        every = [
            name for name, module in model.named_modules(remove_duplicate=False) if module is like
        ]
        put(model, list(dict.fromkeys([*entry.places, *every])), layer)
    for name, other in told.tied.items():
        _tie(model, name, other, path)


def settle(model: nn.Module, told: Quantization, path: str) -> None:
    """Once the values are there: what else the layers and the model have.

    Raises FileFormatError where something does not fit.
    """
    for name, module in model.named_modules():
        if not isinstance(module, FactoredLayer):
            continue
        module._follow_device()
        indices = module._format.index_dtypes(module._meta)
        if indices and not any(t.is_meta for t in module.buffers()):
            try:
                module._assembled().check()
            except ArgumentError as error:
                raise FileFormatError(
                    f"path={path!r}: {name!r} has indices that do not fit: {error}"
                ) from None
        if may_freeze(module) and not any(t.is_meta for t in module.parameters()):
            module._freeze_as_measured()
    give_latents(model, told.latents, path)
    for name, state in told.extra_state.items():
        try:
            model.get_submodule(name).set_extra_state(state)
        except (AttributeError, RuntimeError) as error:
            raise FileFormatError(
                f"path={path!r}: {name!r} has extra state that does not fit: {error}"
            ) from None
    give_table(model, told.plan)


def factored_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of all that the factored layers have in a state dict."""
    for place, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, FactoredLayer):
            held = {**module._parameters, **module._buffers}
            yield from ((joined(place, key), t) for key, t in held.items() if t is not None)


def _dtype_of(like: Any) -> torch.dtype:
    own = (p.dtype for p in like.parameters() if p.is_floating_point())
    return next(own, torch.get_default_dtype())


def _tie(model: nn.Module, name: str, other: str, path: str) -> None:
    """Have two names the very same tensor."""
    try:
        (above, _, last), (_, _, key) = name.rpartition("."), other.rpartition(".")
        owner, source = model.get_submodule(above), model.get_submodule(other.rpartition(".")[0])
        if last in owner._parameters and key in source._parameters:
            owner.register_parameter(last, source._parameters[key])
            return
        if last in owner._buffers and key in source._buffers:
            owner.register_buffer(last, source._buffers[key])
            return
    except AttributeError:
        pass
    raise FileFormatError(
        f"path={path!r} does not fit model: {name!r} is said to be the same tensor as {other!r}, "
        "which the model does not have; get the folder anew"
    )
