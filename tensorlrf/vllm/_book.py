"""Which tensors of the files go where, and which have not come: none is left as it was drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression.checkpoint.pretrained.held import missing, of_other_size

WHERE = "the folder"

Load = Callable[..., None]
"""What vLLM calls with a parameter, a tensor of the files, and perhaps the part that this is."""

Put = Callable[[Tensor], None]
"""Copies this rank's share of a whole tensor to its place."""


@dataclass(eq=False)
class Slot:
    """The place of a tensor in a layer.

    name    that it would have in the files
    source  that it has there: layers may have a tensor in common, which is there once
    shape   of all of it; None where the files alone know
    """

    name: str
    source: str
    shape: tuple[int, ...] | None
    put: Put
    filled: bool = False


@dataclass(eq=False)
class Book:
    """The slots of a model while it is loaded."""

    slots: dict[str, list[Slot]] = field(default_factory=dict)

    def enter(self, slot: Slot) -> Slot:
        """Note that it waits for its tensor."""
        self.slots.setdefault(slot.source, []).append(slot)
        return slot

    def fill(self, slot: Slot, tensor: Tensor) -> None:
        """Put a tensor of the files there, and wherever else it belongs.

        Raises FileFormatError where it is not of the shape that config.json tells of.
        """
        for one in self.slots.get(slot.source, []):
            if one.shape is not None and tuple(tensor.shape) != one.shape:
                raise of_other_size(WHERE, slot.source, tuple(tensor.shape), one.shape)
            one.put(tensor)
            one.filled = True

    def close(self, slots: list[Slot]) -> None:
        """Forget slots, all of which have their tensors. Raises FileFormatError otherwise."""
        for slot in slots:
            if not slot.filled:
                raise missing(WHERE, slot.source)
        self.forget(slots)

    def forget(self, slots: list[Slot]) -> None:
        """Wait for these no more."""
        for slot in slots:
            waiting = self.slots.get(slot.source, [])
            if slot in waiting:
                waiting.remove(slot)


def parameter_of(
    layer: nn.Module, name: str, shape: tuple[int, ...], dtype: torch.dtype, load: Load
) -> None:
    """Register a parameter that vLLM fills by `load`, on the device that it has entered."""
    blank = torch.empty(shape, dtype=dtype, device=torch.get_default_device())
    made: Any = nn.Parameter(blank, requires_grad=False)
    made.weight_loader = load
    layer.register_parameter(name, made)
