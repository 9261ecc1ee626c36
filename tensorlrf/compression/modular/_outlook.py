"""What a structure would lose at every size, and the structure made smaller."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tensorlrf.compression.calibration._dense_layer import dense_layer_at
from tensorlrf.compression.modular._channels import about, definite, kept, narrow
from tensorlrf.compression.modular._heads import (
    Closest,
    HeadMaps,
    lost,
    narrow_heads,
    pair_losses,
    selection,
)
from tensorlrf.compression.modular._moments import ChannelMoments, HeadMoments, Seen
from tensorlrf.compression.modular._structures import Channels, Heads, Structure, cut, pair_entries
from tensorlrf.decomposition.linalg.columns import Elimination, elimination
from tensorlrf.decomposition.shrinkage import shrunk

Costs = Mapping[str, Tensor]
"""Layer -> R (m, m) by which an error e of its outputs costs 1/2 E <e, R e>; none where all errors
count alike."""


@dataclass(frozen=True)
class Done:
    """Of one layer of a structure.

    kind    of the structure
    size    channels, or numbers of a head, that are left
    error   relative, root mean square, of the outputs of the perceptron, of what the heads put out,
            or of the scores of queries and keys, on the calibration inputs
    """

    kind: str
    size: int
    error: float
    samples: int


@dataclass(frozen=True)
class ChannelOutlook:
    """Of a perceptron.

    weight      of its output layer, (m, n), in float64
    gram, mean  of the channels, in float64
    amount      by which they are shrunk
    order       in which channels go
    """

    channels: Channels
    weight: Tensor
    gram: Tensor
    mean: Tensor
    biased: bool
    amount: float
    order: Elimination
    count: int

    @classmethod
    def of(
        cls, given: nn.Module, channels: Channels, seen: ChannelMoments, costs: Costs
    ) -> ChannelOutlook:
        """By what was seen of it, and what its errors cost."""
        gram, mean = seen.rows.moments()
        down = dense_layer_at(given, channels.down)
        weight, biased = down.weight.to(torch.float64), down.module.bias is not None
        amount = seen.amount(gram)
        whole = shrunk(about(gram, mean) if biased else gram, amount)
        turned = weight
        if channels.down in costs:
            turned = torch.linalg.cholesky(costs[channels.down]).mT @ weight
        order = elimination(definite(whole), turned)
        return cls(channels, weight, gram, mean, biased, amount, order, seen.count)

    def loss(self, k: int) -> float:
        """With k channels."""
        return self.order.loss(k) / 2

    def reduce(self, small: nn.Module, k: int) -> dict[str, Done]:
        """Leave `small`, a copy of the given model, k channels, in place."""
        found = kept(
            self.gram, self.mean, self.weight, self.order.columns(k),
            biased=self.biased, amount=self.amount,
        )  # fmt: skip
        narrow(small, self.channels, found)
        done = Done(self.channels.kind, k, found.error, self.count)
        return dict.fromkeys(self.channels.linears, done)


@dataclass(frozen=True)
class HeadOutlook:
    """Of an attention: what matters and what there is, of keys and of values, each (G, d, d).

    query, key   second moments, the queries' over all that share the keys
    mean         of what the heads put out, (G, heads of queries for each, d)
    out          the columns of the layer behind, (m, G, heads of queries for each, d)
    columns      out^T out of the heads that share values
    value        second moments of what the heads put out; about the means where there is a bias
    scores       the best map of keys, where there are no rotary pairs
    pairs        what each rotary pair costs
    """

    heads: Heads
    query: Tensor
    key: Tensor
    mean: Tensor
    out: Tensor
    columns: Tensor
    value: Tensor
    biased: bool
    scores: Closest | None
    pairs: Tensor | None
    values: Closest
    count: int

    @classmethod
    def of(cls, given: nn.Module, heads: Heads, seen: HeadMoments, costs: Costs) -> HeadOutlook:
        """By what was seen of it, and what its errors cost."""
        grouped = (heads.keys, heads.queries // heads.keys)
        query = cut(seen.queries.moments()[0], 0, *grouped).sum(1)
        key, key_mean = seen.keys.moments()
        matters = _of_keys(heads, costs) if heads.key in costs else query
        if heads.pairs:
            scores, pairs = None, pair_losses(matters, key, heads)
        else:
            # What all keys have in common adds alike to all scores of a query, and softmax takes it
            # out.
            key = about(key, key_mean)
            scores, pairs = Closest.of(matters, key), None
        layer = dense_layer_at(given, heads.out)
        biased = layer.module.bias is not None
        out = cut(layer.weight.to(torch.float64), 1, *grouped, heads.width)
        columns = torch.einsum("ogec,oged->gcd", out, out)
        value, mean = seen.outputs.moments()
        value = cut(about(value, mean) if biased else value, 0, *grouped).mean(1)
        felt = columns
        if heads.out in costs:
            felt = torch.einsum("ogec,op,pged->gcd", out, costs[heads.out], out)
        return cls(
            heads, query, key, cut(mean, 0, *grouped), out, columns, value, biased,
            scores, pairs, Closest.of(felt, value), seen.count,
        )  # fmt: skip

    def loss(self, r: int) -> float:
        """With r numbers of each head."""
        if self.scores is not None:
            scores = self.scores.losses[r]
        else:
            assert self.pairs is not None
            scores = float(self.pairs.sort().values[: len(self.pairs) - r // 2].sum())
        return (scores + self.values.losses[r]) / 2

    def maps(self, r: int) -> HeadMaps:
        """What becomes of the heads."""
        heads = self.heads
        pairs: tuple[int, ...] = ()
        if self.scores is not None:
            up, down = self.scores.maps(r)
        else:
            assert self.pairs is not None
            pairs = tuple(sorted(self.pairs.topk(r // 2).indices.tolist()))
            down = selection(pair_entries(pairs, heads.width, heads.pairs), heads, self.key)
            up = down.mT
        value_up, value_down = self.values.maps(r)
        shift = None
        if self.biased:
            left = torch.eye(heads.width, dtype=up.dtype, device=up.device) - value_up @ value_down
            shift = torch.einsum("ogec,gcd,ged->o", self.out, left, self.mean)
        scale = math.sqrt(r / heads.width) if heads.folds else 1.0
        return HeadMaps(scale * up.mT, down, value_down, value_up, pairs, shift)

    def errors(self, maps: HeadMaps) -> tuple[float, float]:
        """Relative ones of scores and of what the heads put out."""
        scale = math.sqrt(maps.width / self.heads.width) if self.heads.folds else 1.0
        scores = lost(self.query, self.key, maps.query.mT / scale, maps.key)
        outputs = lost(self.columns, self.value, maps.out, maps.value)
        return math.sqrt(scores), math.sqrt(outputs)

    def reduce(self, small: nn.Module, r: int) -> dict[str, Done]:
        """Leave the heads of `small`, a copy of the given model, r numbers each, in place."""
        heads, maps = self.heads, self.maps(r)
        narrow_heads(small, heads, maps)
        scores, outputs = self.errors(maps)
        of_scores = Done(heads.kind, r, scores, self.count)
        of_outputs = replace(of_scores, error=outputs)
        found = {heads.query: of_scores, heads.key: of_scores}
        return {**found, heads.value: of_outputs, heads.out: of_outputs}


def _of_keys(heads: Heads, costs: Costs) -> Tensor:
    """(G, d, d) what errors of the keys of each head cost."""
    first = heads.queries * heads.width if heads.packed else 0
    last = first + heads.keys * heads.width
    cost = cut(cut(costs[heads.key][first:last, first:last], 1, heads.keys, -1), 0, heads.keys, -1)
    return torch.stack([cost[k, :, k] for k in range(heads.keys)])


Outlook = ChannelOutlook | HeadOutlook


def outlook(given: nn.Module, structure: Structure, seen: Seen, costs: Costs) -> Outlook:
    """By what was seen of a structure."""
    if isinstance(structure, Channels):
        assert isinstance(seen, ChannelMoments)
        return ChannelOutlook.of(given, structure, seen, costs)
    assert isinstance(seen, HeadMoments)
    return HeadOutlook.of(given, structure, seen, costs)
