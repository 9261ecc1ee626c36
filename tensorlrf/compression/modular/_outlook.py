"""What a structure would lose at every size, and the structure made smaller."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tensorlrf.compression.calibration._dense_layer import DenseLayer, dense_layer_at
from tensorlrf.compression.modular._channels import Kept, definite, kept, narrow
from tensorlrf.compression.modular._heads import (
    Closest,
    HeadMaps,
    lost,
    narrow_heads,
    pair_losses,
    selection,
)
from tensorlrf.compression.modular._moments import ChannelMoments, HeadMoments, Moments, Seen
from tensorlrf.compression.modular._structures import Channels, Heads, Structure, cut, pair_entries
from tensorlrf.decomposition.linalg.selection.columns import Elimination, elimination
from tensorlrf.decomposition.shrinkage import shrunk


@dataclass(frozen=True)
class Cost:
    """What an error e of the outputs of a layer costs: 1/2 E <e, R e>.

    matrix  R (m, m), in float64
    shared  the part of the energy of gradients that the positions of a sample share: errors that
            agree there add up before they are squared
    """

    matrix: Tensor
    shared: float


Costs = Mapping[str, Cost]
"""Of layers by name; none where all errors count alike."""


@dataclass(frozen=True)
class Done:
    """Of one layer of a structure.

    kind    of the structure
    size    channels, or numbers of a head, that are left
    error   relative, root mean square, of the outputs of the perceptron or bottleneck, of what the
            heads put out, or of the scores of queries and keys, on the calibration inputs
    rows    outputs of the layer that are left; () where none went by themselves
    """

    kind: str
    size: int
    error: float
    samples: int
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Reader:
    """A layer that reads channels a.

    weight  W (m, n), in float64
    felt    moments of the channels in which losses are counted; about the means where there is a
            bias, and shrunk where samples are few
    plain   E[a a^T]
    mean    E[a] where there is a bias
    """

    weight: Tensor
    felt: Tensor
    plain: Tensor
    mean: Tensor | None

    @classmethod
    def of(cls, layer: DenseLayer, seen: Moments, shared: float = 0.0) -> Reader:
        """By what was seen to arrive at it, and the part of what its errors cost that the
        positions of a sample share."""
        biased = layer.module.bias is not None
        plain = seen.second(centred=False)
        felt = shrunk(seen.felt(shared, centred=biased), seen.amount(plain))
        mean = seen.mean() if biased else None
        return cls(layer.weight.flatten(1).to(torch.float64), felt, plain, mean)

    def kept(self, columns: Tensor) -> Kept:
        """With these channels alone."""
        return kept(self.felt, self.mean, self.weight, columns, self.plain)


@dataclass(frozen=True)
class ChannelOutlook:
    """Of a perceptron or bottleneck.

    readers  the layers that read its channels
    order    in which channels go
    count    rows that were seen
    """

    channels: Channels
    readers: Mapping[str, Reader]
    order: Elimination
    count: int

    @classmethod
    def of(
        cls, given: nn.Module, channels: Channels, seen: ChannelMoments, costs: Costs
    ) -> ChannelOutlook:
        """By what was seen of it, and what its errors cost."""
        cost = costs.get(channels.down)
        shared = {} if cost is None else {channels.down: cost.shared}
        readers = {
            name: Reader.of(dense_layer_at(given, name), moments, shared.get(name, 0.0))
            for name, moments in seen.read.items()
        }
        last = readers[channels.down]
        turned = last.weight
        if cost is not None:
            turned = torch.linalg.cholesky(cost.matrix).mT @ turned
        order = elimination(definite(last.felt), turned)
        return cls(channels, readers, order, seen.count)

    def loss(self, k: int) -> float:
        """With k channels."""
        return self.order.loss(k) / 2

    def reduce(self, small: nn.Module, k: int) -> dict[str, Done]:
        """Leave `small`, a copy of the given model, k channels, in place."""
        channels, columns = self.channels, self.order.columns(k)
        found = {name: reader.kept(columns) for name, reader in self.readers.items()}
        most = channels.most(small)
        narrow(small, channels, columns, found)
        done = Done(channels.kind, k, found[channels.down].error, self.count)
        rows = {n: channels.outputs(n, columns, most).tolist() for n in channels.writers}
        return {n: replace(done, rows=tuple(rows.get(n, ()))) for n in channels.layers}


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
        query = cut(seen.queries.second(centred=False), 0, *grouped).sum(1)
        # What all keys have in common adds alike to all scores of a query, and softmax takes it
        # out; not where positions turn it.
        key = seen.keys.second(centred=not heads.pairs)
        matters, felt = query, key
        if heads.key in costs:
            matters = _of_keys(heads, costs[heads.key].matrix)
            felt = seen.keys.felt(costs[heads.key].shared, centred=not heads.pairs)
        scores, pairs = None, None
        if heads.pairs:
            pairs = pair_losses(matters, felt, heads)
        else:
            scores = Closest.of(matters, felt)
        layer = dense_layer_at(given, heads.out)
        biased = layer.module.bias is not None
        out = cut(layer.weight.to(torch.float64), 1, *grouped, heads.width)
        columns = torch.einsum("ogec,oged->gcd", out, out)
        value = cut(seen.outputs.second(centred=biased), 0, *grouped).mean(1)
        matters, felt = columns, value
        if heads.out in costs:
            cost = costs[heads.out]
            matters = torch.einsum("ogec,op,pged->gcd", out, cost.matrix, out)
            felt = cut(seen.outputs.felt(cost.shared, centred=biased), 0, *grouped).mean(1)
        mean = cut(seen.outputs.mean(), 0, *grouped)
        return cls(
            heads, query, key, mean, out, columns, value, biased,
            scores, pairs, Closest.of(matters, felt), seen.count,
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


def _of_keys(heads: Heads, matrix: Tensor) -> Tensor:
    """(G, d, d) what errors of the keys of each head cost."""
    first = heads.queries * heads.width if heads.packed else 0
    last = first + heads.keys * heads.width
    blocks = cut(cut(matrix[first:last, first:last], 1, heads.keys, -1), 0, heads.keys, -1)
    return torch.stack([blocks[k, :, k] for k in range(heads.keys)])


Outlook = ChannelOutlook | HeadOutlook


def outlook(given: nn.Module, structure: Structure, seen: Seen, costs: Costs) -> Outlook:
    """By what was seen of a structure."""
    if isinstance(structure, Channels):
        assert isinstance(seen, ChannelMoments)
        return ChannelOutlook.of(given, structure, seen, costs)
    assert isinstance(seen, HeadMoments)
    return HeadOutlook.of(given, structure, seen, costs)
