"""TT-matrices whose outputs are nearest: alternating least squares in the metric of the inputs.

With G (n, n) the second moments of the inputs, the error of an approximation A of W is
tr((W - A) G (W - A)^T). As a function of one core it is quadratic, and its normal matrix is the
same for all values of the core's row digit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import ROUNDING, Descent, descend
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.linalg._solve import proximal_step
from tensorlrf.decomposition.trains._tt_gradients import swept_by_gradients
from tensorlrf.factors import TTFactors, TTMatrix
from tensorlrf.factors.algebra import share_norm

MOST_UNKNOWNS = 2048
"""Of the system of a core that is solved as a matrix, 32 MB; larger ones by conjugate gradients."""

F = TypeVar("F", TTFactors, TTMatrix)


def scaled(target: Target[F], factors: F) -> list[Tensor]:
    """Cores, float64, of the weight's factors divided by the target's scale."""
    cores = [core.to(torch.float64) for core in factors.cores]
    return cores if target.scale == 1.0 else share_norm(cores, 0, -round(math.log2(target.scale)))


def shared(target: Target[F], cores: Sequence[Tensor], carrier: int) -> list[Tensor]:
    """Cores of the weight as it was given, the norm that one of them carries spread out."""
    return share_norm(cores, carrier, round(math.log2(target.scale)))


def true_error(target: Target[F], factors: F) -> float:
    """In the form in which fits are made, of factors of the weight as it was given."""
    dense = factors.to(torch.float64).to_dense() / target.scale
    return target.rel_error(target.matrix - dense.reshape(target.shape))


def fit_by_sweeps(
    target: Target[F],
    plain: F,
    sweep: Callable[[F], F],
    carrier: int,
    n_iter_max: int,
    tol: float | None,
) -> Fit[F]:
    """Sweeps from `plain` on, each of which leaves the norm with the core `carrier`."""

    def swept(train: F) -> tuple[F, float]:
        tried = sweep(train)
        return tried, target.rel_error(target.matrix - tried.to_dense().reshape(target.shape))

    begun = replace(plain, cores=tuple(scaled(target, plain)))
    start = Descent.at(begun, true_error(target, plain))
    run = descend([start], swept, tol, n_iter_max, rise=ROUNDING)
    cores = shared(target, run.state.cores, carrier)
    factors = replace(run.state, cores=tuple(cores)).to(target.dtype)
    how = run.how("a sweep gained nothing more")
    reason = f"rank {factors.rank}, {how}, outputs, from gram"
    return Fit(factors, run.errors, run.converged, reason)


def swept(
    target: Target[TTMatrix], plain: TTMatrix, n_iter_max: int, tol: float | None
) -> Fit[TTMatrix]:
    """Sweeps from `plain` on."""
    last = len(plain.cores) - 1
    return fit_by_sweeps(target, plain, partial(_sweep, target), last, n_iter_max, tol)


def _sweep(target: Target[TTMatrix], train: TTMatrix) -> TTMatrix:
    unknowns = max(c.shape[0] * c.shape[2] * c.shape[3] for c in train.cores)
    if target.rows_apart and unknowns <= MOST_UNKNOWNS:
        return als_sweep(target, train)

    def dense(cores: list[Tensor]) -> Tensor:
        return TTMatrix(tuple(cores), train.dense_shape).to_dense()

    def spread(matrix: Tensor) -> Tensor:
        rows, columns = train.row_sizes, train.column_sizes
        (m, n), d = matrix.shape, len(rows)
        padding = (0, math.prod(columns) - n, 0, math.prod(rows) - m)
        digits = torch.nn.functional.pad(matrix, padding).reshape(*rows, *columns)
        return digits.permute([place for k in range(d) for place in (k, d + k)])

    cores = swept_by_gradients(target.apply, target.image, list(train.cores), dense, spread)
    return TTMatrix(tuple(cores), train.dense_shape)


def als_sweep(target: Target[TTMatrix], train: TTMatrix) -> TTMatrix:
    """Each core from the first to the last by least squares, the others held."""
    rows, columns = train.row_sizes, train.column_sizes
    cores = right_orthogonal(list(train.cores))
    behind = interfaces(cores)
    d = len(cores)
    m, n = target.shape
    gram = target.moments
    whole = math.prod(rows), math.prod(columns)
    # What the cores before k, orthonormal, leave of G and of W G; padding has zero moments.
    moments = gram.new_zeros(1, 1, whole[1], whole[1])
    moments[0, 0, :n, :n] = gram
    cross = gram.new_zeros(1, *whole)
    cross[0, :m, :n] = target.image
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
