"""Where a model keeps its tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

PARAMETER, BUFFER = "parameter", "buffer"
TRANSIENT, ATTRIBUTE = "transient", "attribute"
"""Roles of a tensor in its module; transient is a buffer that is not persistent."""

ROLES = (PARAMETER, BUFFER, TRANSIENT, ATTRIBUTE)
LASTING = (PARAMETER, BUFFER)
"""What a state dict holds; the other roles are made by the architecture itself."""


class NamedTensor(NamedTuple):
    """A tensor of a model: "blocks.0.norm.weight", its role there, and its module."""

    name: str
    role: str
    tensor: Tensor
    module: nn.Module


def named_tensors(model: nn.Module) -> Iterator[NamedTensor]:
    """Every tensor that a module of `model` owns, by all its names: parameters, buffers, and plain
    attributes. Tensors in lists or dicts of a module are not among them."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for key, role, tensor in own_tensors(module):
            yield NamedTensor(joined(prefix, key), role, tensor, module)


def own_tensors(module: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """(name, role, tensor) of those that the module itself owns."""
    for key, parameter in module._parameters.items():
        if parameter is not None:
            yield key, PARAMETER, parameter
    for key, buffer in module._buffers.items():
        if buffer is not None:
            lasting = key not in module._non_persistent_buffers_set
            yield key, BUFFER if lasting else TRANSIENT, buffer
    for key, value in vars(module).items():
        if isinstance(value, Tensor):
            yield key, ATTRIBUTE, value


def joined(prefix: str, key: str) -> str:
    """The qualified name of what `key` names in the module `prefix`; "" is the model itself."""
    return f"{prefix}.{key}" if prefix else key


def ancestors_of(name: str) -> Iterator[str]:
    """The names of the modules that the one of that name is in, the nearest first."""
    while name:
        name = name.rpartition(".")[0]
        yield name
