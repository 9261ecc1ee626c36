"""TT-matrices whose outputs are nearest: alternating least squares in the metric of the inputs.

With G (n, n) the second moments of the inputs, the error of an approximation A of W is
tr((W - A) G (W - A)^T). As a function of one core it is quadratic, and its normal matrix is the
same for all values of the core's row digit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import settled
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._fit_or_plain import Judge, fit_or_plain
from tensorlrf.decomposition._metric import Metric
from tensorlrf.decomposition.linalg._gram import scale_of
from tensorlrf.decomposition.linalg._spectrum import ratio
from tensorlrf.decomposition.trains._tt_gradients import swept_by_gradients
from tensorlrf.decomposition.trains._tt_proximal import proximal_step
from tensorlrf.decomposition.trains._tt_sweep import share_norm
from tensorlrf.factors import Factors, TTFactors, TTMatrix

MOST_UNKNOWNS = 2048
"""Of the system of a core that is solved as a matrix, 32 MB; larger ones by conjugate gradients."""

ROUNDING = 1e-12
"""By how much, relative, a sweep may seem to raise the error."""


class OutputMetric:
    """A weight as a matrix W (m, n), divided by a power of two that brings it near one, and the
    moments G (n, n) of its inputs, in float64."""

    def __init__(self, weight: Tensor, gram: Tensor) -> None:
        wide = weight.to(torch.float64)
        self.scale = scale_of(wide)
        self.matrix = _over(wide, self.scale).reshape(weight.shape[0], -1)
        self.gram = gram
        self.moments = self.matrix @ self.gram  # W G, (m, n)
        self.norm = float((self.moments * self.matrix).sum())

    def rel_error(self, train: Factors) -> float:
        """sqrt(tr(D G D^T) / tr(W G W^T)) for D = W - `train`, multiplied out."""
        return self._loss(train.to(torch.float64).to_dense())

    def true_error(self, factors: Factors) -> float:
        """The same for factors of the weight as it was given."""
        return self._loss(_over(factors.to(torch.float64).to_dense(), self.scale))

    def scaled(self, factors: TTFactors | TTMatrix) -> list[Tensor]:
        """Cores, float64, of the weight's factors divided by its scale."""
        cores = [core.to(torch.float64) for core in factors.cores]
        return cores if self.scale == 1.0 else share_norm(cores, 0, -round(math.log2(self.scale)))

    def shared(self, cores: Sequence[Tensor], carrier: int) -> list[Tensor]:
        """Cores of the weight as it was given, the norm that one of them carries spread out."""
        return share_norm(cores, carrier, round(math.log2(self.scale)))

    def _loss(self, dense: Tensor) -> float:
        difference = self.matrix - dense.reshape(self.matrix.shape)
        return ratio(float((difference @ self.gram * difference).sum()), self.norm)


def fit_in_metric(
    tensor: Tensor, plain: TTMatrix, moments: Metric, n_iter_max: int, tol: float | None
) -> Fit[TTMatrix]:
    """Sweeps from `plain` on; never worse than `plain`."""

    def fit() -> Fit[TTMatrix]:
        return _swept(OutputMetric(tensor, moments.gram), tensor, plain, n_iter_max, tol)

    return fit_or_plain(Judge(tensor, moments), lambda: plain, fit)


def _swept(
    metric: OutputMetric, tensor: Tensor, plain: TTMatrix, n_iter_max: int, tol: float | None
) -> Fit[TTMatrix]:
    best = TTMatrix(tuple(metric.scaled(plain)), plain.dense_shape)
    errors = [metric.true_error(plain)]
    reason = f"{n_iter_max} sweeps"
    converged = False
    for _ in range(n_iter_max):
        tried = _sweep(metric, best)
        error = metric.rel_error(tried)
        falls = error <= errors[-1] * (1 + ROUNDING)
        if falls:
            best = tried
            errors.append(error)
        if not falls or settled(errors, tol):
            reason, converged = "a sweep gained nothing more", True
            break
    # The last core of a sweep carries the norm.
    cores = metric.shared(best.cores, len(best.cores) - 1)
    factors = TTMatrix(tuple(cores), plain.dense_shape).to(tensor.dtype)
    reason = f"rank {factors.rank}, {reason}, outputs, from gram"
    return Fit(factors, tuple(errors), converged, reason)


def _sweep(metric: OutputMetric, train: TTMatrix) -> TTMatrix:
    unknowns = max(c.shape[0] * c.shape[2] * c.shape[3] for c in train.cores)
    if unknowns <= MOST_UNKNOWNS:
        return als_sweep(metric, train)

    def dense(cores: list[Tensor]) -> Tensor:
        return TTMatrix(tuple(cores), train.dense_shape).to_dense()

    def spread(matrix: Tensor) -> Tensor:
        rows, columns = train.row_sizes, train.column_sizes
        (m, n), d = matrix.shape, len(rows)
        padding = (0, math.prod(columns) - n, 0, math.prod(rows) - m)
        digits = torch.nn.functional.pad(matrix, padding).reshape(*rows, *columns)
        return digits.permute([place for k in range(d) for place in (k, d + k)])

    cores = swept_by_gradients(metric.gram, metric.moments, list(train.cores), dense, spread)
    return TTMatrix(tuple(cores), train.dense_shape)


def als_sweep(metric: OutputMetric, train: TTMatrix) -> TTMatrix:
    """Each core from the first to the last by least squares, the others held."""
    rows, columns = train.row_sizes, train.column_sizes
    cores = right_orthogonal(list(train.cores))
    behind = interfaces(cores)
    d = len(cores)
    m, n = metric.matrix.shape
    whole = math.prod(rows), math.prod(columns)
    # What the cores before k, orthonormal, leave of G and of W G; padding has zero moments.
    moments = metric.gram.new_zeros(1, 1, whole[1], whole[1])
    moments[0, 0, :n, :n] = metric.gram
    cross = metric.gram.new_zeros(1, *whole)
    cross[0, :m, :n] = metric.moments
    for k in range(d):
        r, _, _, s = cores[k].shape
        mk, nk = rows[k], columns[k]
        ahead = behind[k]  # (r', M, N), M and N the rows and columns of the digits behind
        tall, wide = ahead.shape[1:]
        pairs = moments.reshape(r, r, nk, wide, nk, wide).permute(0, 1, 2, 4, 3, 5)
        pairs = pairs.reshape(r * r * nk * nk, wide * wide)
        flat = ahead.transpose(1, 2).reshape(s * wide, tall)
        square = (flat @ flat.T).reshape(s, wide, s, wide).permute(1, 3, 0, 2)
        normal = (pairs @ square.reshape(wide * wide, s * s)).reshape(r, r, nk, nk, s, s)
        normal = normal.permute(0, 2, 4, 1, 3, 5).reshape(r * nk * s, r * nk * s)
        split = cross.reshape(r, mk, tall, nk, wide).permute(0, 1, 3, 2, 4)  # (r, m, n, M, N)
        split = split.reshape(r * mk * nk, tall * wide)
        right = (split @ ahead.reshape(s, -1).T).reshape(r, mk, nk, s)
        old = cores[k].permute(0, 2, 3, 1).reshape(-1, mk)  # (r n r', m)
        new = proximal_step(normal, right.permute(0, 2, 3, 1).reshape(-1, mk), old)
        core = new.reshape(r, nk, s, mk).permute(0, 3, 1, 2)
        if k == d - 1:
            cores[k] = core.contiguous()
            break
        basis, upper = torch.linalg.qr(core.reshape(-1, s))
        cores[k] = basis.reshape(r, mk, nk, -1)
        cores[k + 1] = torch.tensordot(upper, cores[k + 1], 1)
        cross = (basis.T @ split).reshape(-1, tall, wide)
        turned = cores[k].permute(0, 2, 3, 1).reshape(-1, mk)  # (r n r', m)
        s = basis.shape[1]
        own = (turned @ turned.T).reshape(r, nk, s, r, nk, s).permute(2, 5, 0, 3, 1, 4)
        moments = (own.reshape(s * s, -1) @ pairs).reshape(s, s, wide, wide)
    return TTMatrix(tuple(cores), train.dense_shape)


def right_orthogonal(cores: list[Tensor]) -> list[Tensor]:
    """The same train with all cores but the first orthonormal as (r, n r')."""
    for k in range(len(cores) - 1, 0, -1):
        core = cores[k]
        basis, upper = torch.linalg.qr(core.reshape(core.shape[0], -1).T)
        cores[k] = basis.T.reshape(-1, *core.shape[1:])
        cores[k - 1] = cores[k - 1] @ upper.T
    return cores


def interfaces(cores: Sequence[Tensor]) -> list[Tensor]:
    """For each core the product of those behind it: (r', M, N)."""
    last = cores[-1]
    products = [last.new_ones(1, 1, 1)]
    for core in reversed(cores[1:]):
        r, m, n, s = core.shape
        _, tall, wide = products[-1].shape
        product = core.reshape(-1, s) @ products[-1].reshape(s, -1)
        product = product.reshape(r, m, n, tall, wide).transpose(2, 3)
        products.append(product.reshape(r, m * tall, n * wide))
    return products[::-1]


def _over(tensor: Tensor, scale: float) -> Tensor:
    return tensor if scale == 1.0 else tensor / scale
