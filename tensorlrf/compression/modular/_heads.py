"""An attention with smaller heads.

Keys k and the queries q that meet them keep P k and Q^T q, with Q P the map of rank r by which
E |q^T (I - Q P) k|^2 is least over all heads of queries that share the keys; values and the layer
behind them likewise, with the columns of that layer in place of queries. Both have one closed form
(Lin et al. 2025, theorems 3 and 4, told by the second moments of q, k and v). Rotary pairs, which
no map but a selection leaves what they are, are kept by E |q_p|^2 E |k_p|^2 (their algorithm 2).
Where it is known what an error of the keys costs the model, that takes the place of queries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tensorlrf.compression.calibration._dense_layer import dense_layer_at, module_at
from tensorlrf.compression.modular._channels import put_values
from tensorlrf.compression.modular._structures import Heads, common, cut, inside, pair_entries
from tensorlrf.decomposition.shrinkage import ROUNDING
from tensorlrf.nn.resized.layers import Resized, resize_

LEAST = ROUNDING**0.5
"""Of the mean variance of a head that every direction is given, so that those which the inputs do
not reach have an order too."""


@dataclass(frozen=True)
class HeadMaps:
    """What becomes of the d numbers of heads, for each of G heads of keys.

    query, key, value  (G, r, d)
    out                (G, d, r), which the columns of the layer behind are multiplied by
    pairs              rotary pairs that stay, in their order; () where there are none
    shift              of the bias of the layer behind, (m,); None for none
    """

    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    pairs: tuple[int, ...] = ()
    shift: Tensor | None = None

    @property
    def width(self) -> int:
        """Of a head: r."""
        return self.key.shape[1]


@dataclass(frozen=True)
class Closest:
    """The maps of every rank by which tr(A (I - Q P) C (I - Q P)^T) is least, for A and C (G, d,
    d): what matters, and what there is.

    root, back  of C, and of its inverse
    turned      directions, those that count the most last
    losses      of every rank, from 0 on to d, over all G
    """

    root: Tensor
    back: Tensor
    turned: Tensor
    losses: tuple[float, ...]

    @classmethod
    def of(cls, outer: Tensor, inner: Tensor) -> Closest:
        """For A and C, positive semidefinite, in float64."""
        values, vectors = torch.linalg.eigh(inner)
        mean = values.clamp(min=0).mean(-1, keepdim=True)
        values = values.clamp(min=0) + LEAST * torch.where(mean > 0, mean, 1.0)
        root = (vectors * values.sqrt()[..., None, :]) @ vectors.mT
        back = (vectors * values.rsqrt()[..., None, :]) @ vectors.mT
        level = outer.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
        eye = torch.eye(outer.shape[-1], dtype=outer.dtype, device=outer.device)
        raised = outer + LEAST * torch.where(level > 0, level, 1.0) * eye
        energies, turned = torch.linalg.eigh(root @ raised @ root)
        tails = energies.clamp(min=0).reshape(-1, outer.shape[-1]).sum(0).cumsum(0).flip(0)
        return cls(root, back, turned, (*tails.tolist(), 0.0))

    def maps(self, r: int) -> tuple[Tensor, Tensor]:
        """(Q (G, d, r), P (G, r, d))."""
        leading = self.turned[..., -r:].flip(-1)
        return self.root @ leading, leading.mT @ self.back


def lost(outer: Tensor, inner: Tensor, out: Tensor, kept: Tensor) -> float:
    """Of the energy tr(A C) the share that A (I - Q P) C (I - Q P)^T is, over all heads."""
    left = torch.eye(outer.shape[-1], dtype=outer.dtype, device=outer.device) - out @ kept
    whole = float((outer * inner).sum())
    part = float(((outer @ left @ inner) * left).sum().clamp(min=0))
    return part / whole if whole > 0 else 0.0


def pair_losses(outer: Tensor, inner: Tensor, heads: Heads) -> Tensor:
    """(pairs,) what the loss of each rotary pair is taken to cost, over all heads: E |q_p|^2 E
    |k_p|^2 of the mean squares on the diagonals of A and C (G, d, d), which a turn leaves alone."""
    pairs = [pair_entries([k], heads.width, heads.pairs) for k in range(heads.width // 2)]
    at = torch.tensor(pairs, device=outer.device)
    sides = [side.diagonal(dim1=-2, dim2=-1)[:, at].sum(-1) for side in (outer, inner)]
    return (sides[0] * sides[1]).sum(0) / 2


def selection(entries: list[int], heads: Heads, like: Tensor) -> Tensor:
    """(G, r, d) that takes these entries of every head."""
    eye = torch.eye(heads.width, dtype=torch.float64, device=like.device)
    return eye[entries].expand(heads.keys, -1, -1)


def narrow_heads(model: nn.Module, heads: Heads, maps: HeadMaps) -> None:
    """Leave the model heads of the width of the maps, in place."""
    each = heads.queries // heads.keys
    rows = {heads.query: maps.query, heads.key: maps.key, heads.value: maps.value}
    if heads.packed:
        layer = dense_layer_at(model, heads.query)
        parts = [(maps.query, each), (maps.key, 1), (maps.value, 1)]
        lengths = [heads.keys * n * heads.width for _, n in parts]
        weights = torch.split(layer.weight, lengths)
        bias = layer.module.bias
        biases = [None] * 3 if bias is None else torch.split(bias.detach(), lengths)
        made = [
            _mapped(w, b, one, n) for w, b, (one, n) in zip(weights, biases, parts, strict=True)
        ]
        whole = None if bias is None else torch.cat([b for _, b in made if b is not None])
        put_values(layer, torch.cat([w for w, _ in made]), whole)
    else:
        for name, one in rows.items():
            layer = dense_layer_at(model, name)
            bias = None if layer.module.bias is None else layer.module.bias.detach()
            weight, bias = _mapped(layer.weight, bias, one, each if name == heads.query else 1)
            put_values(layer, weight, bias)
    out = dense_layer_at(model, heads.out)
    weight = cut(out.weight.to(torch.float64), 1, heads.keys, each, heads.width)
    weight = torch.einsum("ogec,gcr->oger", weight, maps.out.to(weight.device)).flatten(1)
    bias = None if out.module.bias is None else out.module.bias.detach()
    if bias is not None and maps.shift is not None:
        bias = bias.to(torch.float64) + maps.shift.to(bias.device)
    put_values(out, weight, bias)
    resize_(module_at(model, heads.sizes), _resized(heads, maps))


def _resized(heads: Heads, maps: HeadMaps) -> Resized:
    """What the module that cuts the outputs into heads has in place of its own numbers."""
    numbers = {name: n * maps.width for name, n in heads.numbers.items()}
    if not maps.pairs:
        return Resized(numbers)
    names = (heads.query, heads.key, heads.value, heads.out)
    within = heads.sizes == common((*names, heads.sizes))
    return Resized(
        numbers,
        table=tuple(pair_entries(maps.pairs, heads.width, heads.table)),
        whole=heads.width,
        parts=tuple(inside(heads.sizes, name) for name in names) if within else (),
        rows=tuple(pair_entries(maps.pairs, heads.width, heads.pairs)),
    )


def _mapped(
    weight: Tensor, bias: Tensor | None, one: Tensor, each: int
) -> tuple[Tensor, Tensor | None]:
    """Rows (G * each * d, n) of a weight, and its bias, by maps (G, r, d) of every head."""
    one = one.to(weight.device)
    shape = (one.shape[0], each, one.shape[2])
    made = torch.einsum("grd,gedn->gern", one, cut(weight.to(torch.float64), 0, *shape))
    if bias is None:
        return made.flatten(0, 2), None
    bias = torch.einsum("grd,ged->ger", one, cut(bias.to(torch.float64), 0, *shape)).flatten()
    return made.flatten(0, 2), bias
