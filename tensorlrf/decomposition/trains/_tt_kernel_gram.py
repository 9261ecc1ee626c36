"""Trains of conv kernels whose outputs are nearest: core after core in the metric of the unfolded
inputs, with the kernel as a matrix (O, I prod k)."""

from __future__ import annotations

from torch import Tensor

from tensorlrf.decomposition._descent import settled
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._fit_or_plain import Judge, fit_or_plain
from tensorlrf.decomposition._metric import Metric
from tensorlrf.decomposition.trains._tt_gradients import swept_by_gradients
from tensorlrf.decomposition.trains._tt_gram import ROUNDING, OutputMetric
from tensorlrf.factors import TTFactors


def fit_kernel_in_metric(
    tensor: Tensor, plain: TTFactors, moments: Metric, n_iter_max: int, tol: float | None
) -> Fit[TTFactors]:
    """Sweeps from `plain` on; never worse than `plain`."""

    def fit() -> Fit[TTFactors]:
        return _swept(OutputMetric(tensor, moments.gram), tensor, plain, n_iter_max, tol)

    return fit_or_plain(Judge(tensor, moments), lambda: plain, fit)


def _swept(
    metric: OutputMetric, tensor: Tensor, plain: TTFactors, n_iter_max: int, tol: float | None
) -> Fit[TTFactors]:
    modes = plain.modes
    errors = [metric.true_error(plain)]
    cores = metric.scaled(plain)

    def dense(parts: list[Tensor]) -> Tensor:
        return TTFactors(tuple(parts), modes).to_dense().flatten(1)

    def spread(matrix: Tensor) -> Tensor:
        return matrix.reshape(plain.shape).permute(modes)

    best, converged, reason = list(cores), False, f"{n_iter_max} sweeps"
    for _ in range(n_iter_max):
        cores = swept_by_gradients(metric.gram, metric.moments, cores, dense, spread)
        error = metric.rel_error(TTFactors(tuple(cores), modes))
        if error <= errors[-1] * (1 + ROUNDING):
            best = list(cores)
        errors.append(min(error, errors[-1]))
        if settled(errors, tol):
            reason, converged = "a sweep gained nothing more", True
            break
    factors = TTFactors(tuple(metric.shared(best, 0)), modes).to(tensor.dtype)
    reason = f"rank {factors.rank}, {reason}, outputs, from gram"
    return Fit(factors, tuple(errors), converged, reason)
