"""Low-rank matrices of which some entries are not known, or count by weights.

(Gabriel & Zamir 1979, alternating least squares; Srebro & Jaakkola 2003, EM.)
"""

from __future__ import annotations

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition.linalg._spectrum import ShortSideEigh
from tensorlrf.decomposition.linalg._truncation import Scaled
from tensorlrf.decomposition.linalg.observed._complete import EM, Watch, complete, within
from tensorlrf.decomposition.linalg.observed._observed import Observed
from tensorlrf.decomposition.linalg.observed._train import (
    Cores,
    TrainCompletion,
    train_unknowns,
)
from tensorlrf.decomposition.svd._als import rebalanced
from tensorlrf.factors import LowRank


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
    m, n = seen.shape[0], seen.data.numel() // seen.shape[0]
    shape, matrix = seen.shape, seen.view((m, n))
    matrix.check_slices("mode {} of the matrix")
    spectrum = ShortSideEigh(matrix.spread)
    scaled = Scaled(matrix.data, seen.scale**0.5, seen.dtype)

    def build(cores: Cores) -> LowRank:
        left, right = (c.double() for c in cores)
        return LowRank(*scaled.cast(*rebalanced(left[0], right[:, :, 0])), shape)

    def unknowns(r: int) -> int:
        return train_unknowns((m, n), (r,))

    def at(r: int) -> Fit[LowRank]:
        matrix.warn_unless_enough(unknowns(r), r)
        left, right = spectrum.split(r)
        return complete(
            seen.view(shape),
            matrix,
            TrainCompletion(build, by_em=solver == EM),
            [[left[None], right[:, :, None]]],
            n_iter_max=n_iter_max,
            tol=tol,
            callback=callback,
        )

    return at(rank) if rank is not None else within(seen, at, unknowns, error or 0.0, min(m, n))
