"""A layer that can be factored, as compression sees it: a weight in groups, and how it is read.

An embedding is a linear layer on indicators of rows of its table: where row v is looked up, the
input is the v-th unit vector, so that the second moments of inputs are shares of tokens on a
diagonal. Its weight is the table transposed, (embedding_dim, num_embeddings).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression._survey import ROOT
from tensorlrf.compression.calibration.taps._transposed import Reading, reading_of
from tensorlrf.compression.group._scattered import Scattered
from tensorlrf.decomposition.configs import Method
from tensorlrf.decomposition.methods import names
from tensorlrf.factors import Factors
from tensorlrf.nn import FactoredEmbedding, FactoredLayer, factored_type
from tensorlrf.nn.behaviour.seen import plain_of
from tensorlrf.nn.plain import TABLES, Plain, is_table
from tensorlrf.nn.tables.served import no_table, only_tables
from tensorlrf.nn.tables.ties import keep_bias, tie
from tensorlrf.nn.tensors import values_of
from tensorlrf.ops.forms import form_of


@dataclass(frozen=True)
class DenseLayer:
    """module  the layer
    plain      what it computes
    taps       how a convolution reads its input; None for a linear layer
    """

    module: Any
    plain: Plain
    taps: Reading | None

    @classmethod
    def of(cls, module: nn.Module) -> DenseLayer:
        """For a module that is known to be replaceable."""
        plain = plain_of(module)
        assert isinstance(plain, Plain)
        own: Any = module.weight
        taps = reading_of(plain, plain.shape_of(own)) if plain.axes else None
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
    def is_table(self) -> bool:
        """Whether it looks up rows, so that its inputs are indices."""
        return self.plain.kind in TABLES

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

    @property
    def channel_dim(self) -> int:
        """The dimension of its inputs and outputs that channels lie along, from the last."""
        return -1 if self.taps is None else -self.taps.axes - 1

    @property
    def is_pointwise(self) -> bool:
        """Whether it makes of every position by itself what it puts out there, from all channels: a
        linear layer, or a convolution with a kernel of one element that reads every pixel."""
        taps = self.taps
        return self.groups == 1 and not self.is_table and (taps is None or taps.is_pointwise)

    def group_weights(self) -> tuple[Tensor, ...]:
        """The weight of each group: (O / groups, I / groups, *kernel)."""
        return tuple(self.weight.chunk(self.groups))

    def write(self, weight: Tensor) -> None:
        """Put other values into the layer's own weight, which is an ordinary tensor."""
        own, values = self.module.weight, self.plain.as_torch_has(weight)
        with torch.no_grad():
            if isinstance(own, Scattered):
                own.parts.write(values)
            else:
                values_of(own).copy_(values)

    def make_ordinary(self) -> None:
        """Have the layer hold the values of its weight in an ordinary tensor, or in the parts of
        one on the ranks of a group."""
        own = self.module.weight
        if type(own) not in (Tensor, nn.Parameter, Scattered):
            self.module.weight = nn.Parameter(values_of(own).clone(), own.requires_grad)

    def put_together(self) -> DenseLayer:
        """The same layer; where its weight is scattered, another one on the whole of it."""
        own = self.module.weight
        if not isinstance(own, Scattered):
            return self
        twin: Any = object.__new__(type(self.module))
        vars(twin).update(vars(self.module))
        whole = nn.Parameter(values_of(own), requires_grad=own.requires_grad)
        twin._parameters = {**self.module._parameters, "weight": whole}
        return replace(self, module=twin)

    def why_not(self, method: Method) -> str:
        """Why its weight cannot have the format of a method; empty where it can."""
        if method.word in names("compress"):
            if self.is_table and (reason := no_table(method.word, self.plain.kind)):
                return reason
            if not self.is_table and (reason := only_tables(method.word)):
                return reason
        return method.why_not(self.shape, self.groups)

    def takes_moments(self, method: Method) -> bool:
        """Whether a method is fitted to what calibration sees of the inputs: of a table where its
        moments need be no matrix, which would have as many rows as there are tokens."""
        return method.fits_inputs and (method.multiplies_moments or not self.is_table)

    def on(self, factors: Factors) -> FactoredLayer:
        """The layer that takes its place, on factors of its `weight`."""
        kind = factored_type(self.module)
        assert kind is not None
        made: FactoredLayer = kind.from_factors(
            form_of(factors).transposed(factors) if self.is_table else factors, self.module
        )
        if isinstance(made, FactoredEmbedding) and made.padding_idx is not None:
            weight = self.weight
            if not weight.is_meta and not weight[:, made.padding_idx].any():
                made.clear_padding()
        return made

    def tied(self, model: nn.Module, name: str, new: FactoredLayer) -> FactoredLayer:
        """What takes the place of another layer of the model that has the table for its weight, on
        the very factors of `new`, which takes that of the table, and with the very bias that it
        has, which may be that of other modules."""
        other = model.get_submodule(name)
        kind = factored_type(other)
        assert kind is not None
        made: FactoredLayer = kind.from_factors(new.factors, other)
        tie(made, new)
        keep_bias(made, other)
        made.recipe = dict(new.recipe)
        return made

    def fits(self, x: Tensor) -> bool:
        """Whether x has the shape of an input; what does not is left to the layer to refuse."""
        if self.is_table:
            return x.dtype in (torch.int64, torch.int32)
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


def tied_places(model: nn.Module, names: Sequence[str]) -> dict[str, str]:
    """Places of modules that have the weight of a table -> the name of that one, the first of those
    named that has it."""
    tables: dict[int, tuple[nn.Module, str]] = {}
    for name in names:
        module = module_at(model, name)
        if is_table(module):
            tables.setdefault(id(module.weight), (module, name))
    found = {}
    for place, module in model.named_modules(remove_duplicate=False) if tables else ():
        table, name = tables.get(id(module._parameters.get("weight")), (module, ""))
        if table is not module:
            found[place] = name
    return found
