"""The options of steps on drawn entries, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tensorlrf.decomposition._options import check_count, is_pair
from tensorlrf.decomposition.generalized._data import Data
from tensorlrf.decomposition.generalized._samples import SAMPLINGS
from tensorlrf.errors import ArgumentError, unknown

SOLVERS = ("auto", "lbfgs", "adam")

FEWEST, PASSES = 1000, 3
"""Entries of a step by default: so many that an epoch sees each nonzero a few times."""

EPOCH, RATE = 1000, 0.01


@dataclass(frozen=True)
class Drawn:
    """What a step draws, (nonzeros, others), how many of them are an epoch, and their length."""

    sampling: str
    counts: tuple[int, int]
    epoch: int
    rate: float


def check_draws(
    data: Data, solver: Any, sampling: Any, n_samples: Any, epoch: Any, rate: Any
) -> Drawn:
    """Raises ArgumentError for what cannot be, and for options that no step would use."""
    if solver not in SOLVERS:
        raise unknown("solver", solver, SOLVERS)
    given = {"sampling": sampling, "n_samples": n_samples, "epoch": epoch, "rate": rate}
    for name, value in given.items():
        if value is not None and solver != "adam":
            raise ArgumentError(
                f"{name}={value!r} belongs to solver='adam'; solver={solver!r} draws no entries"
            )
    if sampling is not None and sampling not in SAMPLINGS:
        raise unknown("sampling", sampling, SAMPLINGS)
    if data.sparse is None and sampling not in (None, "uniform"):
        raise ArgumentError(
            f"sampling={sampling!r} tells nonzeros from zeros, and is for sparse tensors; of a "
            "dense one use 'uniform'"
        )
    if epoch is not None:
        check_count("epoch", epoch, 1)
    if rate is not None and not _is_positive(rate):
        raise ArgumentError(f"rate={rate!r} must be a finite number above zero")
    usual = "uniform" if data.sparse is None else "stratified"
    steps = epoch or EPOCH
    stored = data.values.numel()
    counts = _counts(n_samples, max(FEWEST, math.ceil(PASSES * stored / steps)))
    return Drawn(sampling or usual, counts, steps, RATE if rate is None else float(rate))


def _counts(n_samples: Any, usual: int) -> tuple[int, int]:
    if n_samples is None:
        return usual, usual
    if is_pair(n_samples):
        nonzeros, others = n_samples
        return int(nonzeros), int(others)
    if isinstance(n_samples, bool) or not isinstance(n_samples, int) or n_samples < 2:
        raise ArgumentError(
            f"n_samples={n_samples!r} must be an int of at least 2, or two of them: nonzeros and "
            "others"
        )
    return n_samples // 2, n_samples - n_samples // 2


def _is_positive(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 < value < math.inf
