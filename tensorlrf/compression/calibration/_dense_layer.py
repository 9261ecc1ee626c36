"""A layer that can be factored, as compression sees it: a weight in groups, and how it is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression._survey import ROOT
from tensorlrf.compression.calibration._taps import Taps
from tensorlrf.nn.plain import Plain, plain_of
from tensorlrf.nn.tensors import values_of


@dataclass(frozen=True)
class DenseLayer:
    """module  the layer
    plain      what it computes
    taps       how a convolution reads its input; None for a linear layer
    """

    module: Any
    plain: Plain
    taps: Taps | None

    @classmethod
    def of(cls, module: nn.Module) -> DenseLayer:
        """For a module that is known to be replaceable."""
        plain = plain_of(module)
        assert isinstance(plain, Plain)
        own: Any = module.weight
        taps = Taps.of(plain, plain.shape_of(own)) if plain.axes else None
        return cls(module, plain, taps)

    @property
    def weight(self) -> Tensor:
        """(O, I / groups, *kernel), or (out, in); detached, and an ordinary tensor."""
        return self.plain.outputs_first(values_of(self.module.weight))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of `weight`, which is not read."""
        return self.plain.shape_of(self.module.weight)

    @property
    def groups(self) -> int:
        return self.plain.groups

    @property
    def device(self) -> torch.device:
        device: torch.device = self.module.weight.device
        return device

    @property
    def columns(self) -> int:
        """Columns n of one group's weight as a matrix."""
        return math.prod(self.shape[1:])

    def group_weights(self) -> tuple[Tensor, ...]:
        """The weight of each group: (O / groups, I / groups, *kernel)."""
        return tuple(self.weight.chunk(self.groups))

    def write(self, weight: Tensor) -> None:
        """Put other values into the layer's own weight, which is an ordinary tensor."""
        with torch.no_grad():
            values_of(self.module.weight).copy_(self.plain.as_torch_has(weight))

    def make_ordinary(self) -> None:
        """Have the layer hold the values of its weight in an ordinary tensor."""
        own = self.module.weight
        if type(own) not in (Tensor, nn.Parameter):
            self.module.weight = nn.Parameter(values_of(own).clone(), own.requires_grad)

    def fits(self, x: Tensor) -> bool:
        """Whether x has the shape of an input; what does not is left to the layer to refuse."""
        if self.taps is None:
            return x.ndim >= 1 and x.shape[-1] == self.shape[1]
        channels = -self.taps.axes - 1
        ndims = (self.taps.axes + 1, self.taps.axes + 2)
        return x.ndim in ndims and x.shape[channels] == self.taps.channels * self.groups


def module_at(model: nn.Module, name: str) -> nn.Module:
    """The module of that qualified name, which for the model itself is ROOT."""
    return model if name == ROOT else model.get_submodule(name)


def dense_layer_at(model: nn.Module, name: str) -> DenseLayer:
    """The layer of that qualified name, which is known to be replaceable."""
    return DenseLayer.of(module_at(model, name))
