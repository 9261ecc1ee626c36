"""Tensors of the files on their way into a model on meta, and out of it again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression.checkpoint.named_tensors import joined
from tensorlrf.compression.scale._device import CPU
from tensorlrf.compression.scale.stored import StoredTensors
from tensorlrf.errors import UnsupportedError
from tensorlrf.files.safetensors import TORCH_DTYPES
from tensorlrf.nn.copies import copy_of

Loaded = dict[str, Tensor]
"""Name in the files -> the tensor, as modules have it."""


@dataclass(frozen=True)
class Weights:
    """Where the tensors of a model lie.

    stored   the files
    sources  name of a parameter or buffer, by every place that it has -> its name there
    device   where they are to be
    """

    stored: StoredTensors
    sources: Mapping[str, str]
    device: torch.device = CPU
    dtype: torch.dtype | None = field(init=False)

    def __post_init__(self) -> None:
        sizes: Counter[torch.dtype] = Counter()
        for place in self.stored.places.values():
            sizes[TORCH_DTYPES[place.info.dtype]] += place.info.end - place.info.begin
        floats = [dtype for dtype, _ in sizes.most_common() if dtype.is_floating_point]
        object.__setattr__(self, "dtype", floats[0] if floats else None)

    def copied(self, model: nn.Module) -> nn.Module:
        """A copy of a model on meta, of which what has values is where the others are to be."""
        own, moved = copy_of(model), dict[int, Tensor]()
        for _, holder, key, tensor in _places(own, "", ()):
            if not tensor.is_meta:
                held = tensor.detach().to(self.device)
                if isinstance(tensor, nn.Parameter):
                    held = nn.Parameter(held, requires_grad=tensor.requires_grad)
                holder[key] = moved.setdefault(id(tensor), held)
        return own

    def fill(
        self,
        module: nn.Module,
        name: str,
        loaded: Loaded,
        own: Collection[str] = (),
        but: Collection[nn.Module] = (),
    ) -> Loaded:
        """Put the values into a module that has this name in the model; those that were read.

        loaded  tensors that are at hand, and become those of the module, too
        own     names of parameters that are to be read all the same, for they will be written to
        but     modules that stay as they are, with all that they hold

        Raises UnsupportedError for a tensor without values that no file has.
        """
        read: Loaded = {}
        for place, holder, key, tensor in _places(module, name, but):
            if not tensor.is_meta:
                continue
            source = self.sources.get(place)
            if source is None:
                raise UnsupportedError(
                    f"{place} has no values and is in none of the files; give model= with its "
                    "buffers on a device, and its parameters on meta"
                )
            known = read if place in own or source not in loaded else loaded
            if source not in known:
                value = self.stored.read(source).to(self.device)
                if value.is_floating_point() and self.dtype is not None:
                    value = value.to(self.dtype)  # one dtype, as the model has when it is loaded
                wrapped = isinstance(tensor, nn.Parameter)
                read[source] = nn.Parameter(value, requires_grad=False) if wrapped else value
            holder[key] = known[source]
        return read


def emptied(module: nn.Module, blank: Mapping[tuple[nn.Module, str], Any]) -> None:
    """Put back what a module had before it was filled."""
    for (holder, key), tensor in blank.items():
        held = holder._parameters if key in holder._parameters else holder._buffers
        held[key] = tensor


def blank_of(module: nn.Module) -> dict[tuple[nn.Module, str], Any]:
    """What a module and those in it have for parameters and buffers."""
    return {
        (one, key): tensor
        for one in module.modules()
        for held in (one._parameters, one._buffers)
        for key, tensor in held.items()
    }


def _places(
    module: nn.Module, name: str, but: Collection[nn.Module]
) -> Iterator[tuple[str, Any, str, Any]]:
    """(name in the model, the dict that holds it, the key there, the tensor) of all tensors."""
    if module in but:
        return
    for held in (module._parameters, module._buffers):
        for key, tensor in held.items():
            if tensor is not None:
                yield joined(name, key), held, key, tensor
    for child, one in module.named_children():
        yield from _places(one, joined(name, child), but)
