"""Low-rank matrices of which some entries are not known, or count by weights.

(Gabriel & Zamir 1979, alternating least squares; Srebro & Jaakkola 2003, EM.)
"""

from __future__ import annotations

from typing import Any

import torch

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition.linalg._spectrum import ShortSideEigh
from tensorlrf.decomposition.linalg._truncation import Scaled
from tensorlrf.decomposition.linalg.observed._complete import EM, Posed, Watch, complete, within
from tensorlrf.decomposition.linalg.observed._observed import Observed
from tensorlrf.decomposition.linalg.observed._train import (
    Cores,
    TrainCompletion,
    train_unknowns,
)
from tensorlrf.decomposition.rank import matrix_rank
from tensorlrf.decomposition.svd._als import rebalanced
from tensorlrf.factors import LowRank


class Matrix:
    """What is observed of a tensor as the matrix (n_0, the others)."""

    def __init__(self, seen: Observed, solver: str = "auto") -> None:
        m, n = seen.shape[0], seen.data.numel() // seen.shape[0]
        self.sizes, self.shape, self.by_em = (m, n), seen.shape, solver == EM
        self.seen = seen.view((m, n))
        self.seen.check_slices("mode {} of the matrix")
        self.spectrum = ShortSideEigh(self.seen.spread)
        self.scaled = Scaled(self.seen.data, seen.scale**0.5, seen.dtype)

    def posed(self, r: int) -> Posed[Cores, LowRank]:
        left, right = self.spectrum.split(r)
        completing = TrainCompletion(self._factors, by_em=self.by_em)
        return Posed(self.seen, completing, [[left[None], right[:, :, None]]])

    def unknowns(self, r: int) -> int:
        return train_unknowns(self.sizes, (r,))

    def _factors(self, cores: Cores) -> LowRank:
        left, right = (c.double() for c in cores)
        return LowRank(*self.scaled.cast(*rebalanced(left[0], right[:, :, 0])), self.shape)


def fit_observed(
    seen: Observed,
    rank: int | None,
    error: float | None,
    solver: str,
    n_iter_max: int | None,
    tol: float | None,
    callback: Watch | None,
) -> Fit[LowRank]:
    """The matrix (n_0, the others) of a rank, or within an error, for what is observed."""
    matrix = Matrix(seen, solver)

    def at(r: int) -> Fit[LowRank]:
        seen.warn_unless_enough(matrix.unknowns(r), r)
        return complete(seen, matrix.posed(r), n_iter_max=n_iter_max, tol=tol, callback=callback)

    if rank is not None:
        return at(rank)
    return within(seen, at, matrix.unknowns, error or 0.0, min(matrix.sizes))


def pose_observed(seen: Observed, rank: Any, draws: torch.Generator) -> Posed[Cores, LowRank]:
    """The matrix of a rank."""
    matrix = Matrix(seen)
    return matrix.posed(matrix_rank(rank, *matrix.sizes))
