"""Trains of conv kernels whose outputs are nearest: core after core in the metric of the unfolded
inputs, with the kernel as a matrix (O, I prod k)."""

from __future__ import annotations

from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.trains._tt_gradients import swept_by_gradients
from tensorlrf.decomposition.trains._tt_outputs import fit_by_sweeps
from tensorlrf.factors import TTFactors


def swept(
    target: Target[TTFactors], plain: TTFactors, n_iter_max: int, tol: float | None
) -> Fit[TTFactors]:
    """Sweeps from `plain` on."""
    modes = plain.modes

    def dense(cores: list[Tensor]) -> Tensor:
        return TTFactors(tuple(cores), modes).to_dense().flatten(1)

    def spread(matrix: Tensor) -> Tensor:
        return matrix.reshape(plain.shape).permute(modes)

    def sweep(train: TTFactors) -> TTFactors:
        cores = swept_by_gradients(target.apply, target.image, list(train.cores), dense, spread)
        return TTFactors(tuple(cores), modes)

    return fit_by_sweeps(target, plain, sweep, 0, n_iter_max, tol)
