"""CP of factors without a negative entry."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import as_tensor
from tensorlrf.decomposition.methods import factors_of, method
from tensorlrf.decomposition.nonnegative._data import Data
from tensorlrf.decomposition.nonnegative._fit import (
    Options,
    check_reach,
    given_start,
    search_rank,
    solve,
)
from tensorlrf.decomposition.random_state import generator
from tensorlrf.decomposition.rank import Rank, check_rank_or_error, cp_rank
from tensorlrf.factors import CPFactors


@method(
    "nonnegative_cp",
    gives=CPFactors,
    on={"tensor"},
    order=(15, 15),
    law="no entry is negative; no sweep raises the error",
    measured="nonnegative: non-negative cp",
)
def fit_nonnegative_cp(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    init: Any = "random",
    n_iter_max: int | None = None,
    tol: float | None = None,
    n_restarts: int = 1,
    callback: Callable[[CPFactors, float], Any] | None = None,
    random_state: int | torch.Generator | None = None,
) -> Fit[CPFactors]:
    """A sum of rank-one tensors without a negative entry.

    Minimises `‖tensor - sum_j w_j a_j o b_j o ...‖` over w, a, b, ... >= 0, by hierarchical
    alternating least squares: several rounds over the columns of a factor for each contraction of
    the tensor, two contractions a sweep, and steps ahead. Columns have unit length and components
    come with falling weights.

    Parameters
    ----------
    tensor : Tensor or array of shape (n_1, ..., n_N), N >= 2
        Of any float dtype; computed in float32 at least. It may have negative entries: measured
        data have some, of noise about zero, and the nearest non-negative model is there all the
        same. What is left is then no less than they are.
    rank : int, float or str, optional
        Terms: an int, a share of the parameters in (0, 1], or "same"; or instead
    error : float, optional
        Search for a small rank within this relative error: doubled, then bisected.
    init : str, CPFactors or tuple
        "random", or "svd": the leading singular vectors of each mode, of each the larger of its
        positive and its negative part; either is swept within the leading subspaces of a large
        tensor first. Or CPFactors or (weights, factors) without a negative entry; the weights are
        of no consequence.
    n_iter_max : int, optional
        Most sweeps over all modes, 300 by default.
    tol : float, optional
        Stop when a sweep lowers the error by no more than this share of it; by default when more
        sweeps would gain little.
    n_restarts : int
        Starts that are tried for ten sweeps, random but for one with "svd"; the best goes on.
    callback : callable, optional
        Called as callback(factors, error) after each sweep that is kept; returning True stops, and
        the factors of the smallest error come back.
    random_state : int or Generator, optional
        torch's global generator is left alone.

    Returns
    -------
    CPFactors
        No entry is negative. Of `fit_nonnegative_cp` a `Fit` with the relative errors at the start
        and after each sweep, none above the one before it, and of the factors as returned.

    Raises
    ------
    ArgumentError, ShapeError, RankError
        For what cannot be decomposed, a bad rank, a start that does not fit or is negative, and an
        error below what negative entries leave to every model.

    Warns
    -----
    TensorlrfWarning
        Where `error` is not met at any rank.

    References
    ----------
    Cichocki, Zdunek & Amari 2007 (HALS); Gillis & Glineur 2012 (rounds over the columns); Ang,
    Cohen, Hien & Gillis 2020, "Extrapolated alternating algorithms for approximate canonical
    polyadic decomposition"; Zhou, Cichocki & Xie 2012 (begun on a low-rank sketch);
    Phan, Tichavsky & Cichocki 2013 (dimension tree).

    Examples
    --------
    >>> planted = tensorlrf.CPFactors(torch.ones(2), [torch.rand(n, 2) for n in (6, 7, 8)])
    >>> tensor = planted.to_dense()
    >>> f = tensorlrf.nonnegative_cp(tensor, 2, random_state=1)
    >>> f.rel_error(tensor) < 0.02, all(bool((u >= 0).all()) for u in f.factors)
    (True, True)
    """
    checked = as_tensor(tensor)
    rank, error = check_rank_or_error(rank, error, checked.dtype)
    shape = tuple(checked.shape)
    r = None if rank is None else cp_rank(rank, shape)
    given = None if r is None else partial(given_start, shape=shape, rank=r)
    options = Options.checked(n_iter_max, tol, init, n_restarts, callback, given)
    draws = generator(random_state, checked.device)
    data = Data.of(checked)

    def at(r: int) -> Fit[CPFactors]:
        factors, run = solve(data, r, options, draws, data.factors)
        errors = (*run.errors, data.error_of(factors.factors, factors.weights))
        return Fit(factors, errors, run.converged, run.reason)

    if r is not None:
        return at(r)
    assert error is not None  # one of the two is given
    check_reach(data, error)
    return search_rank(at, error, checked.numel() // max(shape), checked.dtype)


nonnegative_cp = factors_of(fit_nonnegative_cp)
