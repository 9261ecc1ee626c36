"""A CP model that a user gives to start from."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch

from tensorlrf.decomposition._input import as_tensor
from tensorlrf.errors import ArgumentError, RankError, ShapeError
from tensorlrf.factors import CPFactors


def check_given(given: Any, shape: tuple[int, ...], rank: int) -> CPFactors:
    """The start that the user gave, CPFactors or a pair (weights or None, factors), checked.

    Raises ArgumentError, ShapeError or RankError where it does not fit the shape and the rank.
    """
    try:
        weights, factors = given
        factors = list(factors)
    except (TypeError, ValueError):
        raise ArgumentError(
            f"init is a {type(given).__name__}; give 'random', 'svd', CPFactors, or a pair "
            "(weights, factors)"
        ) from None
    if len(factors) != len(shape):
        raise ShapeError(
            f"init has {len(factors)} factors for a tensor of {len(shape)} modes; give one a mode"
        )
    checked = [as_tensor(f, f"init: factors[{k}]") for k, f in enumerate(factors)]
    for k, (f, n) in enumerate(zip(checked, shape, strict=True)):
        if f.ndim != 2 or f.shape[0] != n:
            raise ShapeError(
                f"init: factors[{k}] has shape {tuple(f.shape)}, but mode {k} of the tensor has "
                f"size {n}; it must be ({n}, {rank})"
            )
        if f.shape[1] != rank:
            raise RankError(
                f"init: factors[{k}] has {f.shape[1]} columns but rank={rank}; they must agree"
            )
    if weights is None:
        weights = checked[0].new_ones(rank)
    weights = as_tensor(weights, "init: weights", min_order=1)
    if tuple(weights.shape) != (rank,):
        raise ShapeError(f"init: weights have shape {tuple(weights.shape)}; they must be ({rank},)")
    parts = [weights.detach(), *(f.detach() for f in checked)]
    wide = reduce(torch.promote_types, (part.dtype for part in parts))
    weights, *factors = (part.to(checked[0].device, wide) for part in parts)
    return CPFactors(weights, tuple(factors))
