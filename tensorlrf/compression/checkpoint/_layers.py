"""A factored layer out of its entry in the header, without values."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from tensorlrf import io
from tensorlrf.compression.checkpoint.header import LayerEntry
from tensorlrf.errors import FileFormatError, UnsupportedError, shown
from tensorlrf.factors import Factors
from tensorlrf.factors.kinds import indices_of
from tensorlrf.nn import FactoredEmbedding, FactoredLayer, factored_type
from tensorlrf.nn.obstacles import why_not


def blank_factors(entry: LayerEntry, path: str, dtype: torch.dtype = torch.float32) -> Factors:
    """The factors of an entry on the meta device. Raises FileFormatError where it has none."""
    where = f"path={path!r}: the layer {entry.places[0]!r}"
    indices = indices_of(entry.format, entry.meta)
    try:
        parts = {
            name: torch.empty(shape, dtype=indices.get(name, dtype), device="meta")
            for name, shape in entry.parts.items()
        }
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:  # too large for torch
        raise FileFormatError(f"{where} has parts {shown(entry.parts)}: {error}") from None
    factors = io.assembled(entry.format, parts, entry.meta, where)
    if factors.shape != entry.shape:
        raise FileFormatError(
            f"{where} claims the shape {entry.shape}; its factors have {factors.shape}"
        )
    return factors


def blank_layer(
    entry: LayerEntry, factors: Factors, bias: bool, like: nn.Module, path: str
) -> FactoredLayer:
    """A layer on the meta device for `factors` in place of `like`, a dense layer or one that has
    factors already; `like` stays as it is.

    Raises FileFormatError where the factors do not fit it, and UnsupportedError where nothing can
    stand in for it.
    """
    name = entry.places[0]
    try:
        make = _like_factored if isinstance(like, FactoredLayer) else _like_dense
        layer = make(factors, bias, like)
    except UnsupportedError:
        raise UnsupportedError(
            f"model: {name!r} is factored in path={path!r} but a {type(like).__name__} in the "
            f"model, which cannot be replaced: {why_not(_on_meta(like, factors, bias))}"
        ) from None
    except (ValueError, RuntimeError, TypeError) as error:
        raise FileFormatError(f"path={path!r} does not fit {name!r} of model: {error}") from None
    if isinstance(layer, FactoredEmbedding) and entry.type is not None:
        _check_scale(layer, 1.0 if entry.scale is None else entry.scale, name, path)
    if entry.stands_for is not None:
        layer.stands_for = entry.stands_for
    layer.measured = dict(entry.measured)
    return layer


def _check_scale(layer: FactoredEmbedding, scale: float, name: str, path: str) -> None:
    """Have the layer the scale of the file, that of the model but for the rounding of dtypes.
    Where the model has it in a buffer without value it is believed."""
    half = torch.finfo(torch.bfloat16).eps
    if not math.isnan(layer.scale) and abs(layer.scale - scale) > half * abs(scale):
        raise FileFormatError(
            f"path={path!r} does not fit {name!r} of model: it multiplies what it looks up by "
            f"{scale:g}, in the model by {layer.scale:g}"
        )
    layer.scale = scale


def _like_dense(factors: Factors, bias: bool, like: nn.Module) -> FactoredLayer:
    stub = _on_meta(like, factors, bias)
    kind = factored_type(stub)
    if kind is None:
        raise UnsupportedError(why_not(stub))
    return kind.from_factors(factors, stub)


def _on_meta(like: nn.Module, factors: Factors, bias: bool) -> Any:
    """`like` with parameters that have no values: from_factors takes dtype and device from it."""
    stub: Any = object.__new__(type(like))
    vars(stub).update(vars(like))
    if isinstance(like._parameters.get("weight"), nn.Parameter):
        weight = like._parameters["weight"]
        assert weight is not None
        blank = torch.empty(weight.shape, dtype=factors.dtype, device="meta")
        parameters: dict[str, Any] = {**like._parameters}
        parameters["weight"] = nn.Parameter(blank, requires_grad=weight.requires_grad)
        if "bias" in parameters or bias:
            parameters["bias"] = _bias(factors, like, weight.requires_grad) if bias else None
        vars(stub)["_parameters"] = parameters
    return stub


def _bias(factors: Factors, like: nn.Module, otherwise: bool) -> nn.Parameter:
    old = like._parameters.get("bias")
    blank = torch.empty(factors.shape[:1], dtype=factors.dtype, device="meta")
    return nn.Parameter(blank, requires_grad=otherwise if old is None else old.requires_grad)


def _like_factored(factors: Factors, bias: bool, like: nn.Module) -> FactoredLayer:
    """The same layer on other factors: sizes and options do not depend on them."""
    assert isinstance(like, FactoredLayer)
    old = tuple(like.factors.shape)
    if old != factors.shape or getattr(factors, "groups", 1) != getattr(like, "groups", 1):
        raise FileFormatError(f"factors of {factors.shape} cannot replace those of {old}")
    grads = {
        name: like.get_parameter(attribute).requires_grad
        for name, attribute in like._names.items()
        if attribute in like._parameters
    }
    new_bias = _bias(factors, like, any(grads.values())) if bias else None
    layer: FactoredLayer = object.__new__(type(like))
    FactoredLayer.__init__(layer, factors, new_bias, like._find_paths(factors))
    for key, value in vars(like).items():
        vars(layer).setdefault(key, value)
    for name, attribute in layer._names.items():
        if attribute in layer._parameters:
            wanted = grads.get(name, any(grads.values()))
            layer.get_parameter(attribute).requires_grad_(wanted)
    if layer.bias is not None and new_bias is not None:
        layer.bias.requires_grad_(new_bias.requires_grad)
    layer.stands_for = like.stands_for
    layer._choose()
    return layer.train(like.training)


def numbers_in(entry: LayerEntry) -> int:
    """How many numbers its factors hold."""
    return sum(math.prod(shape) for shape in entry.parts.values())
