"""Tensor trains of which some entries are not known, or count by weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition.linalg.observed._complete import Posed, Watch, complete, within
from tensorlrf.decomposition.linalg.observed._observed import Observed
from tensorlrf.decomposition.linalg.observed._train import (
    Cores,
    TrainCompletion,
    orthonormal_behind,
    train_unknowns,
)
from tensorlrf.decomposition.trains._tt_ranks import clipped, rank_limits, train_ranks
from tensorlrf.decomposition.trains._tt_sweep import train_svd
from tensorlrf.factors import TTFactors
from tensorlrf.factors.algebra import share_norm


def fit_observed(
    seen: Observed,
    ranks: Sequence[int] | None,
    error: float | None,
    order: tuple[int, ...],
    n_iter_max: int | None,
    tol: float | None,
    callback: Watch | None,
) -> Fit[TTFactors]:
    """A train with these inner ranks, or of the smallest rank tried within an error, for what is
    observed of a tensor whose modes it has in that order."""
    seen.check_slices()
    sizes = tuple(seen.shape[k] for k in order)
    limits = rank_limits(sizes)

    def at(ranks: Sequence[int]) -> Fit[TTFactors]:
        seen.warn_unless_enough(train_unknowns(sizes, ranks), tuple(ranks))
        posed = _posed(seen, ranks, order)
        return complete(seen, posed, n_iter_max=n_iter_max, tol=tol, callback=callback)

    if ranks is not None:
        return at(ranks)

    return within(
        seen,
        lambda r: at(clipped(r, limits)),
        lambda r: train_unknowns(sizes, clipped(r, limits)),
        error or 0.0,
        max(limits),
    )


def pose_observed(seen: Observed, rank: Any, draws: torch.Generator) -> Posed[Cores, TTFactors]:
    """A train of these ranks, its modes as they are."""
    seen.check_slices()
    ranks = train_ranks(rank, seen.shape, seen.data.numel())
    return _posed(seen, ranks, tuple(range(len(seen.shape))))


def _posed(seen: Observed, ranks: Sequence[int], order: tuple[int, ...]) -> Posed[Cores, TTFactors]:
    whole = seen.view([seen.shape[k] for k in order], order)
    exponent = round(math.log2(seen.scale))

    def build(cores: Cores) -> TTFactors:
        shared = share_norm(orthonormal_behind(cores), 0, exponent)
        return TTFactors(tuple(c.to(seen.dtype).contiguous() for c in shared), order)

    start, _ = train_svd(whole.spread, ranks, None)
    return Posed(whole, TrainCompletion(build), [start])
