"""A structure made smaller by what was seen of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import nn

from tensorlrf.compression.calibration._dense_layer import dense_layer_at
from tensorlrf.compression.modular._channels import kept, narrow
from tensorlrf.compression.modular._heads import (
    HeadMaps,
    closest,
    lost,
    narrow_heads,
    selection,
    strongest_pairs,
)
from tensorlrf.compression.modular._moments import ChannelMoments, HeadMoments, Seen
from tensorlrf.compression.modular._structures import Channels, Heads, Structure, cut, pair_entries


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


def reduce(
    given: nn.Module, small: nn.Module, structure: Structure, seen: Seen, size: int
) -> dict[str, Done]:
    """Leave a structure of `small`, a copy of `given`, so many channels or numbers of a head, in
    place; layer -> what was done."""
    if isinstance(structure, Channels):
        assert isinstance(seen, ChannelMoments)
        return _reduced_channels(given, small, structure, seen, size)
    assert isinstance(seen, HeadMoments)
    return _reduced_heads(given, small, structure, seen, size)


def _reduced_channels(
    given: nn.Module, small: nn.Module, channels: Channels, seen: ChannelMoments, size: int
) -> dict[str, Done]:
    gram, mean = seen.rows.moments()
    down = dense_layer_at(given, channels.down)
    found = kept(
        gram, mean, down.weight, size,
        biased=down.module.bias is not None, amount=seen.amount(gram),
    )  # fmt: skip
    narrow(small, channels, found)
    done = Done(channels.kind, size, found.error, seen.count)
    return dict.fromkeys(channels.linears, done)


def _reduced_heads(
    given: nn.Module, small: nn.Module, heads: Heads, seen: HeadMoments, size: int
) -> dict[str, Done]:
    maps, scores, outputs = head_maps(given, heads, seen, size)
    narrow_heads(small, heads, maps)
    of_scores = Done(heads.kind, size, scores, seen.count)
    of_outputs = replace(of_scores, error=outputs)
    return {
        heads.query: of_scores, heads.key: of_scores, heads.value: of_outputs, heads.out: of_outputs
    }  # fmt: skip


def head_maps(
    given: nn.Module, heads: Heads, seen: HeadMoments, size: int
) -> tuple[HeadMaps, float, float]:
    """(what becomes of the heads, the error of the scores, that of the outputs)."""
    grouped = (heads.keys, heads.queries // heads.keys)
    query, _ = seen.queries.moments()
    query = cut(query, 0, *grouped).sum(1)  # (G, d, d): of all heads that share the keys
    key, mean = seen.keys.moments()
    pairs: tuple[int, ...] = ()
    if heads.pairs:
        pairs = strongest_pairs(_of_pairs(query, heads), _of_pairs(key, heads), size)
        take = selection(pair_entries(pairs, heads.width, heads.pairs), heads, query)
        up, down = take.mT, take
    else:
        # What all keys have in common adds to all scores of a query alike: softmax takes it out.
        key = key - mean[:, :, None] * mean[:, None, :]
        up, down = closest(query, key, size)
    value_up, value_down, shift, outputs = _values(given, heads, seen, size)
    scale = math.sqrt(size / heads.width) if heads.folds else 1.0
    maps = HeadMaps(scale * up.mT, down, value_down, value_up, pairs, shift)
    return maps, math.sqrt(lost(query, key, up, down)), outputs


def _values(
    given: nn.Module, heads: Heads, seen: HeadMoments, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, float]:
    grouped = (heads.keys, heads.queries // heads.keys)
    out = dense_layer_at(given, heads.out)
    weight = cut(out.weight.to(torch.float64), 1, *grouped, heads.width)
    columns = torch.einsum("ogec,oged->gcd", weight, weight)  # (G, d, d)
    value, mean = seen.outputs.moments()
    biased = out.module.bias is not None
    whole = cut(value, 0, *grouped).mean(1)
    if biased:
        value = value - mean[:, :, None] * mean[:, None, :]
    value = cut(value, 0, *grouped).mean(1)
    up, down = closest(columns, value, size)
    part = lost(columns, value, up, down)
    energy = float((columns * whole).sum())
    share = part * float((columns * value).sum()) / energy if energy > 0 else 0.0
    if not biased:
        return up, down, None, math.sqrt(share)
    left = torch.eye(heads.width, dtype=torch.float64, device=up.device) - up @ down
    means = torch.einsum("gcd,ged->gec", left, cut(mean, 0, *grouped))
    shift = torch.einsum("ogec,gec->o", weight, means)
    return up, down, shift, math.sqrt(share)


def _of_pairs(moments: torch.Tensor, heads: Heads) -> torch.Tensor:
    """(G, pairs) mean squares of the pairs, of moments (G, d, d)."""
    squares = moments.diagonal(dim1=-2, dim2=-1)
    pairs = [pair_entries([k], heads.width, heads.pairs) for k in range(heads.width // 2)]
    return squares[:, torch.tensor(pairs, device=squares.device)].sum(-1)
