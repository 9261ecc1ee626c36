"""Layers that are of low rank, or dense: what vLLM has a method for."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.factors import LowRank
from tensorlrf.factors.kinds import format_of
from tensorlrf.nn import FactoredEmbedding, FactoredHFConv1D, FactoredLayer, FactoredLinear
from tensorlrf.nn.stock import to_dense_layer

_KINDS = (FactoredLinear, FactoredHFConv1D, FactoredEmbedding)


def in_common(model: nn.Module) -> set[int]:
    """Ids of the factored layers that have a factor in common with another one."""
    layers = [module for module in model.modules() if isinstance(module, FactoredLayer)]
    owners = Counter(id(p) for one in layers for p in one.parameters() if p is not one.bias)
    return {
        id(one)
        for one in layers
        if any(owners[id(p)] > 1 for p in one.parameters() if p is not one.bias)
    }


def served_layer(layer: FactoredLayer, common: set[int]) -> nn.Module | None:
    """A layer of low rank in place of one of another format, where its matrix has a rank so small
    that it holds fewer numbers then, and a dense one where it has not. None for a layer that may
    stay as it is.

    common  ids of layers that are one with others, and stay so: these become dense
    """
    kind: Any = type(layer)
    if kind in _KINDS and format_of(layer.factors) == "lowrank":
        return None
    dense = to_dense_layer(layer)
    if kind not in _KINDS or id(layer) in common:
        return dense
    found = exactly(layer.factors.detach().to(torch.float64).to_dense())
    if found is None:
        return dense
    some = next(iter(layer.factors.tensors().values()))
    made: FactoredLayer = kind.from_factors(found.to(some.dtype), dense)
    made.stands_for = layer.stands_for
    made.train(layer.training)
    return made


def exactly(weight: Tensor) -> LowRank | None:
    """A matrix of float64 as two factors of its rank; None where they would hold no fewer numbers.

    Its rank is the number of singular values above the rounding of the largest.
    """
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    rounding = max(weight.shape) * torch.finfo(weight.dtype).eps
    rank = max(1, int((s > rounding * s[0]).sum()))
    if rank * sum(weight.shape) >= weight.numel():
        return None
    root = s[:rank].sqrt()
    return LowRank(u[:, :rank] * root, root[:, None] * v[:rank])
