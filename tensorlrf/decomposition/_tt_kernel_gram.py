"""Trains of conv kernels whose outputs are nearest: core after core in the metric of the unfolded
inputs, with the kernel as a matrix (O, I prod k)."""

from __future__ import annotations

import torch
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._tt_gradients import swept_by_gradients
from tensorlrf.decomposition._tt_gram import ROUNDING, OutputMetric
from tensorlrf.decomposition._tt_sweep import share_norm
from tensorlrf.factors import TTFactors


def fit_kernel_in_metric(
    tensor: Tensor, plain: TTFactors, gram: Tensor, n_iter_max: int, tol: float
) -> Fit[TTFactors]:
    """Sweeps from `plain` on; never worse in the outputs than `plain`."""
    metric = _KernelMetric(tensor, gram)
    errors = [metric.rel_error(plain)]
    modes = plain.modes
    cores = [core.to(torch.float64) for core in plain.cores]

    def dense(parts: list[Tensor]) -> Tensor:
        return TTFactors(tuple(parts), modes).to_dense().flatten(1)

    best, converged, reason = list(cores), False, f"{n_iter_max} sweeps"
    for _ in range(n_iter_max):
        cores = swept_by_gradients(metric.gram, metric.moments, cores, dense)
        error = metric.rel_error(TTFactors(tuple(cores), modes))
        if error <= errors[-1] * (1 + ROUNDING):
            best = list(cores)
        gained = error < errors[-1] * (1 - tol)
        errors.append(min(error, errors[-1]))
        if not gained:
            reason, converged = "a sweep gained nothing more", True
            break
    factors = TTFactors(tuple(share_norm(best, 0)), modes).to(tensor.dtype)
    final = metric.rel_error(factors)
    if final > errors[0]:
        factors, final = plain, errors[0]
        reason += ", none better than TT-SVD"
    reason = f"rank {factors.rank}, {reason}, outputs, from gram"
    return Fit(factors, (*errors, final), converged, reason)


class _KernelMetric(OutputMetric):
    """`OutputMetric` of a kernel (O, I, *k) as the matrix (O, I prod k)."""

    def __init__(self, kernel: Tensor, gram: Tensor) -> None:
        super().__init__(kernel.reshape(kernel.shape[0], -1), gram)

    def rel_error(self, factors: object) -> float:
        assert isinstance(factors, TTFactors)
        difference = self.matrix - factors.to(torch.float64).to_dense().flatten(1)
        lost = float((difference @ self.gram * difference).sum())
        return (max(lost, 0.0) / self.norm) ** 0.5 if self.norm > 0 else 0.0
