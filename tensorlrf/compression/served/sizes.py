"""Sizes of a model of transformers, and those that its configuration gives it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tensorlrf.compression.checkpoint.named_tensors import joined
from tensorlrf.compression.checkpoint.pretrained.marks import is_of_transformers
from tensorlrf.errors import UnsupportedError
from tensorlrf.nn import FactoredHFConv1D, FactoredLayer

Shapes = Mapping[str, tuple[int, ...]]


def fit_configuration(model: Any) -> None:
    """Have the configuration of a model tell of its sizes, in place, where one number of it does.

    Whoever builds the model from its configuration alone, as vLLM does, gets these then.

    Raises UnsupportedError for a model that is none of transformers, has tensors that its
    architecture does not have, or layers of sizes that no one number gives them.
    """
    if not is_of_transformers(model) or not hasattr(model, "config"):
        raise UnsupportedError(
            f"model is a {type(model).__name__}; vLLM serves models of transformers, which have a "
            "configuration"
        )
    own = _shapes(model)
    told = _built(model, model.config)
    more = next((name for name in own if name not in told), None)
    if more is not None:
        raise UnsupportedError(
            f"model: its architecture has no {more!r}, and vLLM no place for it; where that is a "
            "bias, compress with affine=False"
        )
    wrong = [name for name, shape in own.items() if told[name] != shape]
    if not wrong:
        return
    first = wrong[0]
    changes = {
        (was, now)
        for name in wrong
        for was, now in zip(told[name], own[name], strict=True)
        if was != now
    }
    if len(changes) == 1:
        [(was, now)] = changes
        for key, value in model.config.to_dict().items():
            if type(value) is not int or value != was:
                continue
            config = copy.deepcopy(model.config)
            setattr(config, key, now)
            built = _built(model, config)
            if all(built.get(name) == shape for name, shape in own.items()):
                model.config = config
                return
    raise UnsupportedError(
        f"model: {first!r} is {own[first]} and {told[first]} by its configuration, in which no one "
        "number makes all sizes right; vLLM builds models from that: compress with "
        "allocation='uniform', or with a method that keeps sizes"
    )


def _built(model: Any, config: Any) -> Shapes:
    """Of a model of this class that is made of a configuration; {} where there can be none."""
    try:
        with torch.device("meta"):
            return _shapes(type(model)(copy.deepcopy(config)))
    except (RuntimeError, TypeError, ValueError):  # whatever sizes that do not go together raise
        return {}


def _shapes(model: nn.Module) -> Shapes:
    """Of all parameters, by the names of dense layers."""
    found: dict[str, tuple[int, ...]] = {}
    for place, module in model.named_modules():
        if isinstance(module, FactoredLayer):
            shape = tuple(module.factors.shape)
            turned = isinstance(module, FactoredHFConv1D)
            found[joined(place, "weight")] = shape[::-1] if turned else shape
            if module.bias is not None:
                found[joined(place, "bias")] = tuple(module.bias.shape)
            continue
        for name, parameter in module.named_parameters(recurse=False):
            found[joined(place, name)] = tuple(parameter.shape)
    return found
