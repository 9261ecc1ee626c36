"""Where generalised CP begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._input import as_tensor
from tensorlrf.decomposition.generalized._data import Data
from tensorlrf.decomposition.generalized._dense import linear_base, quadratic_base
from tensorlrf.decomposition.generalized._loss import KnownLoss, Loss
from tensorlrf.decomposition.generalized._stack import apart, balanced
from tensorlrf.errors import ArgumentError, RankError, ShapeError, unknown

LITTLE = 0.1
"""Of the entries of a start about a constant, their deviation from it."""


def random_start(data: Data, loss: Loss, rank: int, rng: torch.Generator) -> Tensor:
    """Positive columns whose model has the mean of the data, where none may be negative; else
    Gaussian ones, of half the norm of the data, or about what a constant model should be."""
    shape = data.shape
    size = sum(shape), rank
    if loss.lower > -math.inf:
        stack = torch.rand(size, generator=rng, device=rng.device, dtype=torch.float64)
        whole = float(linear_base(apart(stack, shape))[0])
        return _times(stack, _constant(data, loss, 1.0) * data.size / whole, shape)
    stack = torch.randn(size, generator=rng, device=rng.device, dtype=torch.float64)
    norm = math.sqrt(float(quadratic_base(apart(stack, shape))[0]))
    if isinstance(loss, KnownLoss) and loss.mean is None:
        stack = _times(stack, 0.5 * data.norm() / norm, shape)
        return balanced(stack, shape)
    stack = _times(stack, LITTLE * math.sqrt(data.size) / norm, shape)
    constant = _constant(data, loss, 0.0)
    root = abs(constant) ** (1 / len(shape))
    stack[:, 0] = root * (1 + LITTLE * stack[:, 0] / stack[:, 0].abs().mean())
    stack[: shape[0], 0] *= math.copysign(1, constant)
    return stack


def _constant(data: Data, loss: Loss, unknown: float) -> float:
    """The model that expects the mean of the data everywhere."""
    mean = data.mean()
    if isinstance(loss, KnownLoss):
        return loss.link(mean)
    fits = loss.mean is None and (mean > 0 or loss.lower < 0)
    return mean if fits else unknown


def given_start(init: Any, data: Data, loss: Loss, rank: int) -> Tensor:
    """Of CPFactors or a pair (weights or None, factors), checked.

    Raises ArgumentError, ShapeError or RankError where it does not fit.
    """
    if isinstance(init, str):
        raise unknown("init", init, ("random", "CPFactors", "(weights, factors)"))
    try:
        weights, factors = init
        factors = list(factors)
    except (TypeError, ValueError):
        raise ArgumentError(
            f"init is a {type(init).__name__}; give 'random', CPFactors, or a pair (weights, "
            "factors)"
        ) from None
    sizes = [(n, rank) for n in data.shape]
    if len(factors) != len(sizes):
        raise ShapeError(
            f"init has {len(factors)} factors for a tensor of {len(sizes)} modes; give one a mode"
        )
    device = data.values.device
    parts = []
    for k, (given, size) in enumerate(zip(factors, sizes, strict=True)):
        f = as_tensor(given, f"init: factors[{k}]").detach().to(device, torch.float64)
        if f.shape != size:
            kind = RankError if f.shape[0] == size[0] else ShapeError
            raise kind(f"init: factors[{k}] has shape {tuple(f.shape)}; it must be {size}")
        parts.append(f)
    if weights is not None:
        w = as_tensor(weights, "init: weights", min_order=1).detach().to(device, torch.float64)
        if w.shape != (rank,):
            raise ShapeError(f"init: weights have shape {tuple(w.shape)}; they must be ({rank},)")
        parts[0] = parts[0] * w
    parts[0] = parts[0] / data.scale
    stack = torch.cat(parts)
    if loss.lower > -math.inf and bool((stack < loss.lower).any()):
        raise ArgumentError(
            f"init has entries below {loss.lower:g} (the weights are counted with the first "
            f"factor), where loss={loss.name!r} has none; flip signs, or take absolute values"
        )
    return balanced(stack, data.shape)


def _times(stack: Tensor, factor: float, shape: Sequence[int]) -> Tensor:
    """The stack of that many times the model."""
    return stack * math.pow(factor, 1 / len(shape))
