"""The parts of a model that can be made smaller as a whole, as values.

Channels are those between the layers of a perceptron, one or two side by side before a function of
each channel and one behind it; or those inside a bottleneck of convolutions, where such functions
have convolutions and gates in them. Heads are those of an attention: queries, keys and values,
which may be one layer, and the layer that puts the heads together.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from tensorlrf.compression._survey import ROOT
from tensorlrf.compression.calibration._dense_layer import dense_layer_at

HALVES, NEIGHBOURS = "halves", "neighbours"
"""How the two numbers of a rotary pair lie among d: k and k + d / 2, or 2 k and 2 k + 1."""


@dataclass(frozen=True)
class Channels:
    """Of a perceptron, or of a bottleneck.

    ups        the layers whose outputs they are: one, or a gate and what it gates
    down       the layer whose inputs they are
    halves     whether one layer has the gate, and behind it what it gates
    depthwise  convolutions of each channel alone, between the two
    gates      of every squeeze-excite there the layer that reads what is left of all channels, and
               the one that gives a factor for each
    norms      other modules there that have numbers of each channel
    """

    ups: tuple[str, ...]
    down: str
    halves: bool = False
    depthwise: tuple[str, ...] = ()
    gates: tuple[tuple[str, str], ...] = ()
    norms: tuple[str, ...] = ()

    kind = "channels"

    @property
    def layers(self) -> tuple[str, ...]:
        """Its layers."""
        return (*self.ups, *self.depthwise, *itertools.chain(*self.gates), self.down)

    @property
    def fitted(self) -> tuple[str, ...]:
        """Those that are fitted in order once it is smaller."""
        return (*self.ups, self.down)

    @property
    def readers(self) -> tuple[str, ...]:
        """Those that read all channels, the one behind them first."""
        return (self.down, *(reduce for reduce, _ in self.gates))

    @property
    def writers(self) -> tuple[str, ...]:
        """Those with an output for each channel."""
        return (*self.ups, *self.depthwise, *(expand for _, expand in self.gates))

    @property
    def owner(self) -> str:
        """The module around them."""
        return common((*self.layers, *self.norms))

    def at(self, name: str) -> Channels:
        """The same in the module of that name, of which the names are told."""
        ups, depthwise, norms, *gates = (
            tuple(inside(name, one) for one in names)
            for names in (self.ups, self.depthwise, self.norms, *self.gates)
        )
        pairs = tuple((reduce, expand) for reduce, expand in gates)
        return Channels(ups, inside(name, self.down), self.halves, depthwise, pairs, norms)

    def outputs(self, name: str, columns: Tensor, most: int) -> Tensor:
        """Of one of the writers those that are left with these channels of `most`."""
        both = self.halves and name in self.ups
        return torch.cat([columns, most + columns]) if both else columns

    def most(self, model: nn.Module) -> int:
        """How many there are."""
        return dense_layer_at(model, self.down).shape[1]

    def least(self) -> int:
        """How many must stay."""
        return 1


@dataclass(frozen=True)
class Heads:
    """Of an attention.

    query, key, value   the layers, all three the same where they are one, in this order
    out                 the layer behind the heads
    sizes               the module whose forward cuts the outputs into heads
    width               numbers of a head
    queries, keys       heads of queries, and of keys and values, each of which serves as many
    numbers             attributes of `sizes` -> how many widths each of them is
    pairs, table        how rotary pairs lie in a head, and in the tables; empty without
    folds               whether the forward takes its scale from the width
    """

    query: str
    key: str
    value: str
    out: str
    sizes: str
    width: int
    queries: int
    keys: int
    numbers: Mapping[str, int] = field(default_factory=dict, hash=False)
    pairs: str = ""
    table: str = ""
    folds: bool = False

    kind = "heads"

    @property
    def packed(self) -> bool:
        """Whether queries, keys and values come from one layer."""
        return self.query == self.key

    @property
    def layers(self) -> tuple[str, ...]:
        """Its layers."""
        return tuple(dict.fromkeys((self.query, self.key, self.value, self.out)))

    @property
    def fitted(self) -> tuple[str, ...]:
        """Those that are fitted in order once it is smaller."""
        return self.layers

    @property
    def owner(self) -> str:
        """The module around them."""
        return common((*self.layers, self.sizes))

    def at(self, name: str) -> Heads:
        """The same in the module of that name, of which the names are told."""
        return replace(
            self,
            query=inside(name, self.query),
            key=inside(name, self.key),
            value=inside(name, self.value),
            out=inside(name, self.out),
            sizes=inside(name, self.sizes),
        )

    def most(self, _: nn.Module) -> int:
        """Numbers of a head."""
        return self.width

    def least(self) -> int:
        """Of which so many must stay."""
        return 2 if self.pairs else 1


Structure = Channels | Heads


def common(names: Sequence[str]) -> str:
    """The innermost module around all of these; the model itself is ROOT."""
    paths = [() if name == ROOT else tuple(name.split(".")) for name in names]
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared) or ROOT


def inside(owner: str, name: str) -> str:
    """The name of a module as it is called in another one around it."""
    if owner == ROOT:
        return name
    return ROOT if name == owner else name.removeprefix(f"{owner}.")


def cut(t: Tensor, dim: int, *sizes: int) -> Tensor:
    """The tensor with one of its dimensions cut into several, of which one may be -1."""
    return t.reshape(*t.shape[:dim], *sizes, *t.shape[dim + 1 :])


def pair_entries(kept: Sequence[int], width: int, layout: str) -> list[int]:
    """Where the numbers of these pairs lie among `width`, in their order within fewer."""
    if layout == HALVES:
        return [*kept, *(k + width // 2 for k in kept)]
    return [n for k in kept for n in (2 * k, 2 * k + 1)]
