"""Tensor train decomposition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tensorlrf.decomposition._descent import check_iteration, finished
from tensorlrf.decomposition._evbmf import analytic_matrix_rank
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._fit_or_plain import fit_or_plain
from tensorlrf.decomposition._options import check_callback, check_modes, check_moments
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.linalg._batched import check_batch_dims, check_batched_metric
from tensorlrf.decomposition.linalg.observed._complete import Watch, check_sweeps
from tensorlrf.decomposition.linalg.observed._observed import observed
from tensorlrf.decomposition.methods import Unfolded, completes, factors_of, method, truncates
from tensorlrf.decomposition.rank import Rank, check_rank_or_error
from tensorlrf.decomposition.trains._tt_batched import fit_tt_batched
from tensorlrf.decomposition.trains._tt_completion import fit_observed, pose_observed
from tensorlrf.decomposition.trains._tt_kernel_outputs import swept
from tensorlrf.decomposition.trains._tt_ranks import rank_limits, smallest_uniform, train_ranks
from tensorlrf.decomposition.trains._tt_sweep import fit_train
from tensorlrf.errors import ArgumentError
from tensorlrf.factors import Batch, TTFactors

SWEEPS = 50
"""In the metric of the inputs, at most."""


@method(
    "tt",
    gives=TTFactors,
    on={"tensor", "linear", "conv", "embedding"},
    estimates=True,
    order=(4, 5),
    sweeps_in_metric=True,
    law="no error above the root of the energies that the cuts discard",
    measured="tt",
)
def fit_tt(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    modes: Sequence[int] | None = None,
    gram: Any = None,
    mean: Any = None,
    mask: Any = None,
    weights: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
    callback: Watch | None = None,
    batch_dims: int = 0,
    measure: bool = True,
) -> Fit[TTFactors] | Fit[Batch]:
    """A tensor train by TT-SVD.

    For a `tensor` (n_0, ..., n_{N-1}) core k is (r_k, n_k, r_{k+1}) with r_0 = r_N = 1. The sweep
    starts at the end from which it is cheaper; all cores but the last it reaches are orthonormal as
    seen from there, up to a power of two, so that every core has its part of the norm.

    Parameters
    ----------
    tensor : Tensor or array of shape (n_0, ..., n_{N-1})
    rank : int, tuple, float or str, optional
        An int for every bond, clipped to what the bond can have; a tuple, the N - 1 inner ranks or
        all N + 1 with a 1 at both ends; a share of the parameters in (0, 1] (an upper bound, the
        largest uniform rank within it, down to rank one); "same"; or "auto", for every unfolding
        the analytic estimate of `evbmf_rank`; or instead
    error : float, optional
        Relative error of the whole to stay within: every step gets an equal part of the squared
        error that is left, and hands on what it does not use; where rounding to the dtype of
        `tensor` is too coarse for it the train is of full rank, and exact.
    modes : sequence of int, optional
        The order of the modes in the train, (0, ..., N - 1) by default; (0, 3, 2, 1) for a conv
        kernel (O, I, kh, kw) makes it four convolutions.
    gram : Tensor or array of shape (n, n), optional
        Second moments X X^T / N of the inputs of a layer whose weight is `tensor` (n_0, n): of a
        convolution, of its unfolded inputs. Then sweeps of least squares by conjugate gradients,
        from the TT-SVD on, lower the error of the outputs, which never rises; what the inputs do
        not span follows the plain train (`Fit.shrinkage`). `error` is the relative error of the
        outputs then, and the smallest uniform rank that keeps it is searched for.
    mean : Tensor or array of shape (n,), optional
        Mean input; the second moments are then taken about it.
    mask : bool Tensor or array of the shape of `tensor`, optional
        True where an entry is known. What is hidden is never read and may be NaN; errors are of the
        entries that are known alone.
    weights : Tensor or array of the shape of `tensor`, optional
        By which squared errors of the entries count, none below zero, which hides an entry. Not
        with `gram`, `batch_dims` nor rank="auto".
    n_iter_max, tol
        With `gram`, `mask` or `weights`: most sweeps, 50 by default (500 over observed entries, of
        least squares over the cores forth and back), and the share of the error that a sweep must
        gain for another one; by default they end when more would gain little.
    callback : callable, optional
        With `mask` or `weights`: called as callback(factors, error) after each sweep; returning
        True stops.
    batch_dims : int
        This many leading dimensions of `tensor` count equal tensors that are decomposed at once,
        with the same ranks for all; `modes` are those of one of them. For `error` every step takes
        the smallest rank with which each of them stays within its part. Without `gram` and
        `rank="auto"`.

    Returns
    -------
    TTFactors
        With `batch_dims` a Batch of it. Of `fit_tt` a `Fit` with the relative error; `converged` is
        False only where `error` was not reached. With `batch_dims` the error is that of the whole
        batch, and `reason` tells the largest.

    Raises
    ------
    RankError
        For ranks below one or above the limits (a tuple), or with ends other than 1.
    ArgumentError, ShapeError
        For what cannot be decomposed.

    Warns
    -----
    ConvergenceWarning
        Where with `gram` the default number of sweeps leaves over 2% to be gained.
    TensorlrfWarning
        Where a rank has more free parameters than there are observed entries.

    Notes
    -----
    The squared error is the sum of the energies that the steps leave out, which is at most N - 1
    times that of the best train of these ranks (theorem 2.2, corollary 2.4).

    References
    ----------
    Oseledets 2011, algorithm 1; Grasedyck, Kluge & Kraemer 2015 (completion).

    Examples
    --------
    >>> tensor = torch.ones(4, 5, 6) + torch.arange(6.0)
    >>> f = tensorlrf.tt(tensor, error=1e-4)
    >>> f.rank, f.rel_error(tensor) <= 1e-4
    ((1, 1, 1, 1), True)
    """
    # Without `measure`, as `tt` asks, the error of given ranks is left out (NaN).
    given = mask is not None or weights is not None
    tensor, seen = observed(tensor, mask, weights, rank, gram=gram, batch_dims=batch_dims)
    tensor = tensor.detach()
    rank, error = check_rank_or_error(rank, error, tensor.dtype)
    check_iteration(n_iter_max, tol)
    check_moments(gram, mean, **({} if given else {"n_iter_max": n_iter_max, "tol": tol}))
    check_callback(callback, gram)
    check_sweeps(given, callback=callback)
    check_batch_dims(batch_dims, tensor.ndim)
    if batch_dims:
        check_batched_metric(rank, gram)
        return _solve_batched(tensor, rank, error, modes, batch_dims, measure)
    order = _order(modes, tensor.ndim)
    whole = tensor.permute(order)
    ranks = None if rank is None else ranks_of(rank, whole, tensor.numel())
    if seen is not None:
        return fit_observed(seen, ranks, error, order, n_iter_max, tol, callback)

    def build(cores: list[Tensor]) -> TTFactors:
        return TTFactors(tuple(cores), order)

    target: Target[TTFactors] = Target.of(tensor, gram, mean)
    if target.is_plain:
        return fit_train(whole, ranks, error, build, tensor, measure)
    sweeps = SWEEPS if n_iter_max is None else n_iter_max

    def fit(ranks: Sequence[int]) -> Fit[TTFactors]:
        plain = fit_train(whole, ranks, None, build, tensor, measure=False).factors
        return fit_or_plain(target, lambda: plain, lambda: swept(target, plain, sweeps, tol))

    if ranks is not None:
        found = fit(ranks)
    else:
        found = smallest_uniform(fit, rank_limits(whole.shape), error or 0.0)
    return finished(found, n_iter_max)


tt = factors_of(fit_tt)
completes("tt")(pose_observed)


@truncates("tt")
def _unfoldings(tensor: Tensor) -> Unfolded:
    for k in range(1, tensor.ndim):
        yield f"unfolding {k - 1}", [(tensor.flatten(0, k - 1).flatten(1), 0)]


def _solve_batched(
    tensor: Tensor,
    rank: Rank | None,
    error: float | None,
    modes: Sequence[int] | None,
    batch_dims: int,
    measure: bool,
) -> Fit[Batch]:
    batch, shape = tuple(tensor.shape[:batch_dims]), tuple(tensor.shape[batch_dims:])
    order = _order(modes, len(shape))
    sizes = [shape[k] for k in order]
    ranks = None if rank is None else train_ranks(rank, sizes, math.prod(shape))
    stack = tensor.reshape(-1, *shape)
    return fit_tt_batched(stack, ranks, error, order, batch, measure)


def ranks_of(rank: Rank, whole: Tensor, dense: int) -> tuple[int, ...]:
    """The inner ranks of a train of `whole`; for "auto" those of its unfoldings."""
    sizes = tuple(whole.shape)
    if rank != "auto":
        return train_ranks(rank, sizes, dense)
    heads = [math.prod(sizes[:k]) for k in range(1, len(sizes))]
    found = [analytic_matrix_rank(whole.reshape(head, -1)) for head in heads]
    # A bond holds no more than its neighbour and the mode between them can pass on.
    for k in range(1, len(found)):
        found[k] = min(found[k], found[k - 1] * sizes[k])
    for k in range(len(found) - 2, -1, -1):
        found[k] = min(found[k], found[k + 1] * sizes[k + 1])
    return train_ranks(found, sizes, dense)


def _order(modes: Sequence[int] | None, n: int) -> tuple[int, ...]:
    """`modes` as an order of all n modes; negative ones count from the end."""
    order = check_modes(modes, n)
    if len(order) < n:
        raise ArgumentError(
            f"modes={tuple(modes or ())} must be an order of all {n} modes of the tensor, such as "
            f"{tuple(range(n))}"
        )
    return order
