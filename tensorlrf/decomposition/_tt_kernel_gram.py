"""Trains of conv kernels whose outputs are nearest: core after core in the metric of the inputs.

With K the kernel as a matrix (O, n) and G (n, n) the second moments of the unfolded inputs, the
error tr((K - A) G (K - A)^T) of a train A is quadratic in each core. Its minimum is sought by
conjugate gradients from the core as it is, so that no step raises it; the other cores are
orthonormal as seen from there, which makes the system as well conditioned as G is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._tt_gram import ROUNDING, OutputMetric
from tensorlrf.decomposition._tt_sweep import share_norm
from tensorlrf.factors import TTFactors

STEPS = 8
"""Of conjugate gradients for a core, in each half sweep."""


def fit_kernel_in_metric(
    tensor: Tensor, plain: TTFactors, gram: Tensor, n_iter_max: int, tol: float
) -> Fit[TTFactors]:
    """Sweeps from `plain` on; never worse in the outputs than `plain`."""
    metric = _KernelMetric(tensor, gram)
    errors = [metric.rel_error(plain)]
    modes = plain.modes
    cores = [core.to(torch.float64) for core in plain.cores]
    for k in range(len(cores) - 1, 0, -1):
        _orthonormal_from_right(cores, k)
    best, converged, reason = list(cores), False, f"{n_iter_max} sweeps"
    for _ in range(n_iter_max):
        _sweep(metric, cores, modes)
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


def _sweep(metric: _KernelMetric, cores: list[Tensor], modes: tuple[int, ...]) -> None:
    """Every core once on the way to the last, and once on the way back; the first is the one that
    is not orthonormal, before and after."""
    last = len(cores) - 1
    for k in range(last):
        _solve(metric, cores, modes, k)
        _orthonormal_from_left(cores, k)
    for k in range(last, 0, -1):
        _solve(metric, cores, modes, k)
        _orthonormal_from_right(cores, k)
    _solve(metric, cores, modes, 0)


def _solve(metric: _KernelMetric, cores: list[Tensor], modes: tuple[int, ...], k: int) -> None:
    def kernel(core: Tensor) -> Tensor:
        parts = [*cores[:k], core, *cores[k + 1 :]]
        return TTFactors(tuple(parts), modes).to_dense().flatten(1)

    linearised: Any = torch.func.vjp(kernel, cores[k])
    dense, pull = linearised

    def normal(core: Tensor) -> Tensor:
        (pulled,) = pull(kernel(core) @ metric.gram)
        return torch.as_tensor(pulled)

    (right,) = pull(metric.moments - dense @ metric.gram)
    cores[k] = cores[k] + conjugate_gradients(normal, right, STEPS)


def conjugate_gradients(apply: Callable[[Tensor], Tensor], right: Tensor, steps: int) -> Tensor:
    """x after some steps towards apply(x) = right from zero, for a symmetric positive semidefinite
    `apply`; each step lowers (x, apply x) - 2 (x, right)."""
    x = torch.zeros_like(right)
    residual, direction = right, right
    square = first = float((residual * residual).sum())
    for _ in range(steps):
        if square <= 1e-24 * first or square == 0.0:
            break
        image = apply(direction)
        curvature = float((direction * image).sum())
        if curvature <= 0:  # a direction that the inputs do not see
            break
        step = square / curvature
        x = x + step * direction
        residual = residual - step * image
        before, square = square, float((residual * residual).sum())
        direction = residual + square / before * direction
    return x


def _orthonormal_from_left(cores: list[Tensor], k: int) -> None:
    """Core k orthonormal over its first two modes; what it was is in the next one."""
    r, n, after = cores[k].shape
    basis, rest = torch.linalg.qr(cores[k].reshape(r * n, after))
    if basis.shape[1] < after:  # keep the rank that was asked for
        return
    cores[k] = basis.reshape(r, n, after)
    cores[k + 1] = torch.tensordot(rest, cores[k + 1], 1)


def _orthonormal_from_right(cores: list[Tensor], k: int) -> None:
    """Core k orthonormal over its last two modes; what it was is in the one before."""
    r, n, after = cores[k].shape
    basis, rest = torch.linalg.qr(cores[k].reshape(r, n * after).T)
    if basis.shape[1] < r:
        return
    cores[k] = basis.T.reshape(r, n, after)
    cores[k - 1] = torch.tensordot(cores[k - 1], rest.T, 1)
