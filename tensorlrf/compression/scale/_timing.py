"""How long decompositions will take: a few are made, of parts of weights where these are large."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.checkpoint.by_name import CONVS
from tensorlrf.compression.fit._factor import factor
from tensorlrf.compression.fit._factored import Factored, Options
from tensorlrf.compression.plan._plan import LayerPlan
from tensorlrf.decomposition.configs import Method
from tensorlrf.decomposition.linalg.threads import steady
from tensorlrf.errors import TensorlrfError

KINDS = 4
"""Of weights, by shape and method, of which one is tried: those that take the longest together."""

FIRST, SECONDS = 256, 2.0
"""Rows and columns of a first part that is tried, and how long the second one may take."""

Read = Callable[[LayerPlan], Tensor]
"""The weight of a layer, outputs first."""


@dataclass(frozen=True)
class Timing:
    """seconds  that all decompositions take
    told       by what that was judged
    shares     layer -> share of its numbers that factors had, where only a fit tells
    """

    seconds: float
    told: str
    shares: Mapping[str, float]


def timing_of(rows: Sequence[LayerPlan], read: Read, threads: int, seed: int) -> Timing:
    """Of the decompositions of all rows, one after the other with so many threads."""
    kinds: dict[tuple[object, ...], list[LayerPlan]] = {}
    for row in rows:
        assert row.method is not None
        kinds.setdefault((row.method.word, row.shape, row.groups), []).append(row)
    order = sorted(kinds, key=lambda kind: -len(kinds[kind]) * _cost(kinds[kind][0].shape))
    rates: dict[object, float] = {}  # of a method: cost a second
    shares: dict[str, float] = {}
    seconds, largest, tried = 0.0, (0, 0), 0
    for kind in order:
        row, count = kinds[kind][0], len(kinds[kind])
        rate = rates.get(kind[0])
        if tried < KINDS or rate is None:
            found = _tried(row, read(row), threads, seed)
            rate = rates.setdefault(kind[0], found.rate)
            tried, largest = tried + 1, max(largest, found.size, key=math.prod)
            rate = found.rate
            shares |= dict.fromkeys((one.name for one in kinds[kind]), found.share)
        seconds += count * _cost(row.shape) / rate
    told = (
        f"from {tried} decompositions of up to {largest[0]:,} x {largest[1]:,} here and now, "
        f"{threads} {'thread' if threads == 1 else 'threads'}, by rows x columns x the smaller of "
        "the two, which says too much where weights are larger than these; without reading and "
        "writing, which go on beside"
    )
    return Timing(seconds, told, shares)


@dataclass(frozen=True)
class _Tried:
    """rate  cost a second
    size   rows and columns of what was factored
    share  of its numbers that the factors had
    """

    rate: float
    size: tuple[int, int]
    share: float


def _tried(row: LayerPlan, weight: Tensor, threads: int, seed: int) -> _Tried:
    """One decomposition of the weight of a layer, or of a part of it that takes some seconds."""
    weight = weight[: row.shape[0] // row.groups]  # of the first group, as the others are
    weight = torch.where(weight.isfinite(), weight, torch.zeros_like(weight))
    most = max(weight.shape[:2])
    side, seconds, found = min(most, FIRST), 0.0, None
    for _ in range(2):
        part = weight[:side, :side].contiguous()
        begun = time.perf_counter()
        with steady(threads):
            found = _factored(row, part, seed)
        seconds = max(time.perf_counter() - begun, 1e-6)
        if side == most or found is None:
            break
        room = SECONDS / seconds
        side = min(most, max(side, int(side * room ** (1 / 3))))
    if found is None:  # a method that takes no part of the weight
        part = weight.contiguous()
        begun = time.perf_counter()
        with steady(threads):
            found = factor(row.name, _layer(part), _method(row), None, Options(random_state=seed))
        seconds = time.perf_counter() - begun
    size = (part.shape[0], part.numel() // part.shape[0])
    share = found.factors.n_params / part.numel()
    return _Tried(_cost(tuple(part.shape)) / seconds, size, min(1.0, share))


def _factored(row: LayerPlan, part: Tensor, seed: int) -> Factored | None:
    """Factors of a part of a weight, at the same share of its numbers or the same error; None where
    there are none."""
    method, whole = _method(row), math.prod(row.shape) // row.groups
    try:
        if part.numel() < whole and isinstance(method.rank, (int, tuple)):
            each = (row.shape[0] // row.groups, *row.shape[1:])
            after = method.planned_params(method.rank, each, 1)
            share = 0.5 if after is None else min(1.0, after / whole)
            method = method.with_budget(rank=share)
        return factor(row.name, _layer(part), method, None, Options(random_state=seed))
    except TensorlrfError:
        return None


def _method(row: LayerPlan) -> Method:
    assert row.method is not None
    return row.method


def _layer(weight: Tensor) -> DenseLayer:
    """A layer with this weight."""
    O, I, *kernel = weight.shape
    module: nn.Module = nn.Linear(I, O, bias=False, device="meta")
    if kernel:
        module = CONVS[weight.ndim](I, O, tuple(kernel), bias=False, device="meta")
    module._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    return DenseLayer.of(module)


def _cost(shape: tuple[int, ...]) -> float:
    """Of a decomposition, but for a factor."""
    m, n = shape[0], math.prod(shape[1:])
    return float(m * n * min(m, n))
