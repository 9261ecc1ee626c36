"""Tensor trains of which some entries are not known, or count by weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition.linalg.observed._complete import Watch, complete, within
from tensorlrf.decomposition.linalg.observed._observed import Observed
from tensorlrf.decomposition.linalg.observed._train import (
    Cores,
    TrainCompletion,
    orthonormal_behind,
    train_unknowns,
)
from tensorlrf.decomposition.trains._tt_ranks import clipped, rank_limits
from tensorlrf.decomposition.trains._tt_sweep import share_norm, train_svd
from tensorlrf.factors import TTFactors


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
    whole = seen.view(sizes, order)
    limits = rank_limits(sizes)
    exponent = round(math.log2(seen.scale))

    def build(cores: Cores) -> TTFactors:
        shared = share_norm(orthonormal_behind(cores), 0, exponent)
        return TTFactors(tuple(c.to(seen.dtype).contiguous() for c in shared), order)

    def at(ranks: Sequence[int]) -> Fit[TTFactors]:
        whole.warn_unless_enough(train_unknowns(sizes, ranks), tuple(ranks))
        start, _ = train_svd(whole.spread, ranks, None)
        completing = TrainCompletion(build)
        return complete(
            seen, whole, completing, [start], n_iter_max=n_iter_max, tol=tol, callback=callback
        )

    if ranks is not None:
        return at(ranks)

    return within(
        seen,
        lambda r: at(clipped(r, limits)),
        lambda r: train_unknowns(sizes, clipped(r, limits)),
        error or 0.0,
        max(limits),
    )
