"""How far the outputs of two models are apart, whatever they return."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tensorlrf.compression.calibration.batches import Batch, call
from tensorlrf.compression.group._group import ALONE, Alone
from tensorlrf.nn.copies import replica

Floats = NDArray[np.float64]

DRAWS = 1000

LEAST_UNITS = 4
"""Of fewer an interval would say nothing."""


def tensors_of(output: Any) -> Iterator[Tensor]:
    """The floating-point tensors in what a model returns: tensors, sequences, mappings, dataclasses
    (transformers' outputs among them), nested."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors_of(value)
    elif isinstance(output, Sequence) and not isinstance(output, (str, bytes)):
        for value in output:
            yield from tensors_of(value)
    elif is_dataclass(output) and not isinstance(output, type):
        for field in fields(output):
            yield from tensors_of(getattr(output, field.name))


@dataclass(frozen=True)
class Apart:
    """How far two models are apart.

    error     relative, root mean square
    interval  of 95%, by bootstrap over groups, or over samples where these are not told; None where
              there are too few
    """

    error: float
    interval: tuple[float, float] | None


def apart(
    model: nn.Module,
    small: nn.Module,
    batches: Sequence[Batch],
    groups: Mapping[int, int] | None = None,
    group: Alone = ALONE,
) -> Apart | None:
    """Of all outputs together, of `small` against `model`, each batch through replicas of them.
    Rows of padding do not count. None where nothing can be compared.

    groups  index of a batch -> number of the group that it is of
    group   of ranks, each with batches of its own; all of them count
    """
    found = _compared(model, small, batches, groups)
    lost: list[Floats] = []
    whole: list[Floats] = []
    units: list[tuple[int, ...]] = []
    for part in group.gathered(found):
        if part is None:
            return None
        lost += part[0]
        whole += part[1]
        units += part[2]
    if not units:
        return None
    numbers: dict[tuple[int, ...], int] = {}
    at = [numbers.setdefault(unit, len(numbers)) for unit in units]
    a, b = (_summed(at, np.concatenate(parts)) for parts in (lost, whole))
    if not (b.sum() > 0 and math.isfinite(b.sum())):
        return None
    return Apart(math.sqrt(a.sum() / b.sum()), _interval(a, b))


def _compared(
    model: nn.Module,
    small: nn.Module,
    batches: Sequence[Batch],
    groups: Mapping[int, int] | None,
) -> tuple[list[Floats], list[Floats], list[tuple[int, ...]]] | None:
    """Of each batch the squares of what is lost and of what is wanted, sample by sample, and what
    the samples belong to; None where outputs cannot be compared."""
    lost: list[Floats] = []
    whole: list[Floats] = []
    units: list[tuple[int, ...]] = []
    for batch in batches:
        wanted = list(tensors_of(call(replica(model), batch)))
        got = list(tensors_of(call(replica(small), batch)))
        if len(wanted) != len(got) or [t.shape for t in wanted] != [t.shape for t in got]:
            return None
        n = batch.samples
        n = n if all(t.ndim > 0 and t.shape[0] == n for t in wanted) else 1
        squares = np.zeros((2, n))
        for w, g in zip(wanted, got, strict=True):
            squares += _squares(batch, w, g, n)
        lost.append(squares[0])
        whole.append(squares[1])
        own = range(n)
        units += [(batch.index, k) if groups is None else (groups[batch.index],) for k in own]
    return lost, whole, units


def model_error(model: nn.Module, small: nn.Module, batches: Sequence[Batch]) -> float | None:
    """The error of `apart` alone."""
    found = apart(model, small, batches)
    return None if found is None else found.error


def _squares(batch: Batch, wanted: Tensor, got: Tensor, n: int) -> Floats:
    """(2, n): of each of n samples the squares of the difference, and of what is wanted."""
    w, d = wanted.double(), (wanted - got).double()
    mask = batch.mask
    if mask is not None and mask.device == w.device and w.shape[: mask.ndim] == mask.shape:
        keep = mask.reshape(*mask.shape, *[1] * (w.ndim - mask.ndim))
        w, d = (torch.where(keep, t, 0.0) for t in (w, d))
    sums = [t.reshape(n, t.numel() // n).square().sum(1) for t in (d, w)]
    return torch.stack(sums).cpu().numpy()


def _summed(at: Sequence[int], values: Floats) -> Floats:
    """Over those of one unit."""
    return np.asarray(np.bincount(at, weights=values), np.float64)


def _interval(lost: Floats, whole: Floats) -> tuple[float, float] | None:
    """Of the root of the ratio of their sums, by percentiles over units drawn anew."""
    n = len(lost)
    if n < LEAST_UNITS or not np.isfinite(lost).all():
        return None
    drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), DRAWS)  # (draws, n)
    below = drawn @ whole
    ratios = np.sqrt(np.divide(drawn @ lost, below, out=np.zeros(DRAWS), where=below > 0))
    low, high = np.percentile(ratios, (2.5, 97.5))
    return float(low), float(high)
