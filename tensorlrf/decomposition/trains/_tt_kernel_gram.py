"""Trains of conv kernels whose outputs are nearest: core after core in the metric of the unfolded
inputs, with the kernel as a matrix (O, I prod k)."""

from __future__ import annotations

from torch import Tensor

from tensorlrf.decomposition._descent import settled
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.trains._tt_gradients import swept_by_gradients
from tensorlrf.decomposition.trains._tt_gram import ROUNDING, scaled, shared, true_error
from tensorlrf.factors import TTFactors


def swept(
    target: Target[TTFactors], plain: TTFactors, n_iter_max: int, tol: float | None
) -> Fit[TTFactors]:
    """Sweeps from `plain` on."""
    modes = plain.modes
    errors = [true_error(target, plain)]
    cores = scaled(target, plain)

    def dense(parts: list[Tensor]) -> Tensor:
        return TTFactors(tuple(parts), modes).to_dense().flatten(1)

    def spread(matrix: Tensor) -> Tensor:
        return matrix.reshape(plain.shape).permute(modes)

    best, converged, reason = list(cores), False, f"{n_iter_max} sweeps"
    for _ in range(n_iter_max):
        cores = swept_by_gradients(target.apply, target.image, cores, dense, spread)
        error = target.rel_error(target.matrix - dense(cores))
        if error <= errors[-1] * (1 + ROUNDING):
            best = list(cores)
        errors.append(min(error, errors[-1]))
        if settled(errors, tol):
            reason, converged = "a sweep gained nothing more", True
            break
    factors = TTFactors(tuple(shared(target, best, 0)), modes).to(target.dtype)
    reason = f"rank {factors.rank}, {reason}, outputs, from gram"
    return Fit(factors, tuple(errors), converged, reason)
