"""Tensors that are one, as transformers is to know them when factors have the place of weights."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from tensorlrf.compression.checkpoint.pretrained.quantization import Quantization
from tensorlrf.nn import FactoredLayer

_KEYS, _ALL = "_tied_weights_keys", "all_tied_weights_keys"


def declare(model: Any, told: Quantization) -> None:
    """Have a model declare which tensors are one: of dense weights what its class says, of factors
    what is told, in place."""
    forget(model)
    for module in model.modules():
        own = getattr(module, _KEYS, None)
        if isinstance(module, PreTrainedModel) and own:
            vars(module)[_KEYS] = {
                name: other
                for name, other in own.items()
                if not _is_factored(module, name) and not _is_factored(module, other)
            }
    dense = model.get_expanded_tied_weights_keys(all_submodels=True)
    if told.tied:
        vars(model)[_KEYS] = {**(getattr(model, _KEYS, None) or {}), **told.tied}
    vars(model)[_ALL] = {**dense, **told.tied}


def forget(model: nn.Module) -> None:
    """Have a model, in place, declare what its class does."""
    for module in model.modules():
        vars(module).pop(_KEYS, None)


def _is_factored(model: nn.Module, tensor: str) -> bool:
    try:
        return isinstance(model.get_submodule(tensor.rpartition(".")[0]), FactoredLayer)
    except AttributeError:
        return False
