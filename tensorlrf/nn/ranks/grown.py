"""Layers whose factors get terms of low rank behind their own for a while: a merged adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.errors import UnsupportedError
from tensorlrf.factors import Factors
from tensorlrf.factors.kinds import format_of
from tensorlrf.nn._hf_conv1d import FactoredHFConv1D
from tensorlrf.nn._linear import FactoredLinear
from tensorlrf.nn.ranks.leading import set_factors, settle

GROWING = (FactoredLinear, FactoredHFConv1D)
"""The types whose layers can grow; subclasses hold their parameters in other ways."""


@dataclass
class Grown:
    """What a layer had before terms came behind its own.

    rank      of the factors
    tensors   its parameters, which others may share, by name
    bias      a copy of its numbers, where it changed
    kept      path tables
    """

    rank: int | tuple[int, ...]
    tensors: dict[str, nn.Parameter]
    bias: Tensor | None
    kept: dict[str, Any]


def why_not(layer: nn.Module, bias: bool = False) -> str:
    """Why no terms can come behind those of a layer, and what to do; empty where they can.

    bias  whether its bias changes too
    """
    if type(layer) not in GROWING:
        return f"is a {type(layer).__name__}, and no FactoredLinear that runs by itself"
    assert isinstance(layer, FactoredLinear)
    factors = layer.factors  # of a matrix
    if type(factors).plus is Factors.plus:
        return (
            f"is of format {format_of(factors)!r}, which takes no terms of low rank behind its "
            "own, as 'lowrank' and 'cp' do"
        )
    own = layer._parameters
    unlike = [name for name in layer._names.values() if type(own.get(name)) is not nn.Parameter]
    if unlike:
        return (
            f"has no plain parameters {', '.join(unlike)}: they are computed, as prune does, "
            "sharded, or without elements; undo that first"
        )
    if layer._rank is not None:
        return "runs on its leading terms, inside of a rank_scale; leave that first"
    if bias and layer.bias is None:
        return "has no bias, and the change has one"
    return ""


def grow(layer: FactoredLinear, left: Tensor, right: Tensor, bias: Tensor | None = None) -> Grown:
    """Have a layer run on its factors + left @ right, and on its bias + `bias`, in place.

    Its parameters become new ones; `shrink` with what is returned gives the former ones back. What
    grew last is to shrink first.
    """
    if unfit := why_not(layer, bias is not None):
        raise UnsupportedError(f"the layer {unfit}")
    names = ("measured", "_path_table", "_own_table")
    before = Grown(
        layer.factors.rank,
        {name: layer.get_parameter(name) for name in layer._names.values()},
        None if bias is None else layer.get_parameter("bias").detach().clone(),
        {name: vars(layer)[name] for name in names},
    )
    set_factors(layer, layer.factors.plus(left.detach(), right.detach()))
    if bias is not None:
        with torch.no_grad():
            layer.get_parameter("bias").add_(bias)
    return before


def shrink(layer: FactoredLinear, before: Grown) -> None:
    """Have a layer run on what it did before it grew, in place: bit for bit, on the dtype and the
    device that it has now.

    Parameters that still are what they were come back themselves, and are those of other layers
    again that share them.
    """
    set_factors(layer, layer.factors.leading(before.rank))
    for name, old in before.tensors.items():
        new = layer.get_parameter(name)
        if (old.dtype, old.device) == (new.dtype, new.device) and torch.equal(old, new):
            old.requires_grad_(new.requires_grad)
            layer._parameters[name] = old
    if before.bias is not None:
        with torch.no_grad():
            layer.get_parameter("bias").copy_(before.bias)
    vars(layer).update(before.kept)
    settle(layer)
    if not layer.training:
        layer._freeze_as_measured()
