"""Tensor train decomposition of a matrix whose row and column are digits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import check_iteration, finished
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._fit_or_plain import fit_or_plain
from tensorlrf.decomposition._input import as_tensor
from tensorlrf.decomposition._options import are_positive, check_count, check_moments
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.config import Structured, config
from tensorlrf.decomposition.ladder import LayerRank
from tensorlrf.decomposition.methods import factors_of, for_layers, method
from tensorlrf.decomposition.rank import Rank, check_rank_or_error
from tensorlrf.decomposition.sizes import matrix_sizes
from tensorlrf.decomposition.trains._tt import ranks_of, tt
from tensorlrf.decomposition.trains._tt_outputs import swept
from tensorlrf.decomposition.trains._tt_ranks import (
    rank_limits,
    smallest_uniform,
    train_params,
    train_ranks,
)
from tensorlrf.decomposition.trains._tt_sweep import fit_train
from tensorlrf.errors import ArgumentError, ShapeError, TensorlrfError
from tensorlrf.factors import TTFactors, TTMatrix
from tensorlrf.ops import train_order

SWEEPS = 100
"""In the metric of the inputs, at most."""


@method(
    "tt_matrix",
    gives=TTMatrix,
    on={"tensor"},
    estimates=True,
    order=(7, 12),
    sweeps_in_metric=True,
    law="no error above the root of the energies that the cuts discard",
    measured="formats: tt",
)
def fit_tt_matrix(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    row_sizes: Sequence[int] | None = None,
    column_sizes: Sequence[int] | None = None,
    order: int | None = None,
    gram: Any = None,
    mean: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
) -> Fit[TTMatrix]:
    """A tensor train whose core k has a digit of the row and one of the column.

    For a `tensor` (m, n) core k is (r_k, m_k, n_k, r_{k+1}). Where prod m_k exceeds m, or prod n_k
    exceeds n, the matrix is filled with zeros below or on the right, and `dense_shape` of the
    factors stays (m, n).

    Parameters
    ----------
    tensor : Tensor or array of shape (m, n)
    rank : int, tuple, float or str, optional
        An int for every bond, clipped to what the bond can have; a tuple, the d - 1 inner ranks or
        all d + 1 with a 1 at both ends; a share of the m n parameters in (0, 1] (an upper bound,
        the largest uniform rank within it, down to rank one); "same"; or "auto", for every
        unfolding the analytic estimate of `evbmf_rank`; or instead
    error : float, optional
        Relative error of the whole to stay within.
    row_sizes, column_sizes : sequence of int, optional
        The m_k and n_k, equally many; those not given are balanced factorisations, padded where a
        side has none (see `mode_sizes`).
    order : int, optional
        How many cores, by default such that m_k and n_k are near 12, two at least.
    gram : Tensor or array of shape (n, n), optional
        Second moments X X^T / N of the inputs of the layer. Then sweeps of alternating least
        squares, from the TT-SVD on, lower the error of the outputs, which never rises; what the
        inputs do not span follows the TT-SVD (`Fit.shrinkage`). `error` is the relative error of
        the outputs then, and the smallest uniform rank that keeps it is searched for, with a fit
        for each rank that is tried. The system of core k has r_k n_k r_{k+1} unknowns; large ones
        are solved by conjugate gradients.
    mean : Tensor or array of shape (n,), optional
        Mean input; the second moments are then taken about it, for a layer whose bias is corrected.
    n_iter_max : int, optional
        Most sweeps with `gram`, 100 by default.
    tol : float, optional
        With `gram`, stop when a sweep lowers the error by no more than this share of it; by default
        when more sweeps would gain little.

    Returns
    -------
    TTMatrix
        Of `fit_tt_matrix` a `Fit` with the relative errors: one, or with `gram` those of the
        outputs, of the TT-SVD and after each sweep.

    Raises
    ------
    RankError
        For ranks below one or above the limits (a tuple), or with ends other than 1.
    ShapeError
        For what is no matrix and for sizes that do not hold it.
    ArgumentError
        For other input that cannot be decomposed.

    Warns
    -----
    ConvergenceWarning
        Where with `gram` the default number of sweeps leaves over 2% to be gained.

    References
    ----------
    Oseledets 2010; Novikov et al. 2015.

    Examples
    --------
    >>> f = tensorlrf.tt_matrix(torch.rand(12, 35), 3)
    >>> f.row_sizes, f.column_sizes, f.rank
    ((4, 3), (7, 5), (1, 3, 1))
    """
    tensor = as_tensor(tensor).detach()
    rank, error = check_rank_or_error(rank, error, tensor.dtype)
    check_iteration(n_iter_max, tol)
    check_moments(gram, mean, n_iter_max=n_iter_max, tol=tol)
    if tensor.ndim != 2:
        raise ShapeError(
            f"tensor has shape {tuple(tensor.shape)}; a TT-matrix is of a matrix (m, n), reshape "
            "it, or use tt(tensor, ...) for a train with one core a mode"
        )
    m, n = tensor.shape
    rows, columns = matrix_sizes(m, n, row_sizes, column_sizes, order)
    sizes = [a * b for a, b in zip(rows, columns, strict=True)]
    whole = tensorised(tensor, rows, columns)
    ranks = None if rank is None else ranks_of(rank, whole, tensor.numel())

    def build(cores: list[Tensor]) -> TTMatrix:
        pairs = zip(cores, rows, columns, strict=True)
        return TTMatrix(tuple(c.reshape(c.shape[0], a, b, -1) for c, a, b in pairs), (m, n))

    target: Target[TTMatrix] = Target.of(tensor, gram, mean)
    if target.is_plain:
        return fit_train(whole, ranks, error, build, tensor)

    sweeps = SWEEPS if n_iter_max is None else n_iter_max

    def fit(ranks: Sequence[int]) -> Fit[TTMatrix]:
        plain = fit_train(whole, ranks, None, build, tensor, measure=False).factors
        return fit_or_plain(target, lambda: plain, lambda: swept(target, plain, sweeps, tol))

    if ranks is not None:
        found = fit(ranks)
    else:
        found = smallest_uniform(fit, rank_limits(sizes), error or 0.0)
    return finished(found, n_iter_max)


tt_matrix = factors_of(fit_tt_matrix)


@for_layers("tt", options_of=fit_tt_matrix)
def _of_layer(tensor: Any, rank: Rank | None = None, **options: Any) -> TTMatrix | TTFactors:
    """A TT-matrix of a linear weight; of a kernel the train of its modes in the order in which
    its cores are convolutions. Raises ArgumentError for a kernel's row_sizes=, column_sizes= or
    order=."""
    if tensor.ndim == 2:
        return tt_matrix(tensor, rank, **options)
    for name in ("row_sizes", "column_sizes", "order"):
        if (value := options.pop(name, None)) is not None:
            raise ArgumentError(
                f"{name}={value!r} is for linear layers; the train of a convolution has its modes"
            )
    return cast(TTFactors, tt(tensor, rank, modes=train_order(tensor.ndim), **options))


@config("tt")
class TT(Structured):
    """Trains, as a method of `compress`.

    A TT-matrix of a linear weight; of a convolution the train of its modes, which runs as a
    convolution along each axis between two pointwise ones.

    Examples
    --------
    >>> print(tensorlrf.TT(order=3))
    tt(order=3)
    """

    row_sizes: tuple[int, ...] | None
    column_sizes: tuple[int, ...] | None
    order: int | None

    def check_options(self) -> None:
        super().check_options()
        for name in ("row_sizes", "column_sizes"):
            sizes = getattr(self, name)
            if sizes is not None and not (isinstance(sizes, tuple) and are_positive(sizes)):
                raise ArgumentError(f"{name}={sizes!r} must be sizes of digits, such as (8, 8, 12)")
        if self.order is not None:
            check_count("order", self.order, 2)

    @property
    def takes_any_form(self) -> bool:
        return True

    def why_not(self, shape: tuple[int, ...], groups: int) -> str:
        digits = self.row_sizes or self.column_sizes or self.order
        if len(shape) > 2 and digits:
            return "row_sizes=, column_sizes= and order= are for linear layers"
        if len(shape) == 2:
            try:
                self._digits(shape)
            except TensorlrfError as error:
                return str(error)
        return super().why_not(shape, groups)

    def least_params(self, shape: tuple[int, ...]) -> int:
        if len(shape) > 2:
            return sum(shape)
        rows, columns = self._digits(shape)
        return sum(a * b for a, b in zip(rows, columns, strict=True))

    def planned_params(self, rank: LayerRank, shape: tuple[int, ...], groups: int) -> int | None:
        shape = (shape[0] // groups, *shape[1:])
        if len(shape) > 2:
            sizes = [shape[k] for k in train_order(len(shape))]
        else:
            sizes = [a * b for a, b in zip(*self._digits(shape), strict=True)]
        return groups * train_params(sizes, train_ranks(rank, sizes, math.prod(shape)))

    def fresh_factors(
        self, rank: Any, shape: tuple[int, ...], values: Callable[..., Tensor]
    ) -> TTMatrix | TTFactors:
        order = train_order(len(shape)) if len(shape) > 2 else ()
        sizes: list[tuple[int, ...]] = [(shape[k],) for k in order]
        sizes = sizes or list(zip(*self._digits(shape), strict=True))
        whole = [math.prod(size) for size in sizes]
        bonds = (1, *train_ranks(rank, whole, math.prod(shape)), 1)
        cores = [values(r, *n, s) for n, (r, s) in zip(sizes, pairwise(bonds), strict=True)]
        return TTFactors(tuple(cores), order) if order else TTMatrix(tuple(cores), shape)

    def _digits(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return matrix_sizes(shape[0], shape[1], self.row_sizes, self.column_sizes, self.order)


def tensorised(matrix: Tensor, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
    """(m, n) as (m_0 n_0, m_1 n_1, ...), zeros where the sizes are padded."""
    padded = math.prod(rows), math.prod(columns)
    if padded != tuple(matrix.shape):
        whole = matrix.new_zeros(padded)
        whole[: matrix.shape[0], : matrix.shape[1]] = matrix
        matrix = whole
    d = len(rows)
    order = [k + d * side for k in range(d) for side in (0, 1)]
    sizes = [a * b for a, b in zip(rows, columns, strict=True)]
    return torch.permute(matrix.reshape(*rows, *columns), order).reshape(sizes)
