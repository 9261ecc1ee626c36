"""Non-negative matrix factorisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from tensorlrf.decomposition._descent import Descent
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import as_tensor
from tensorlrf.decomposition._search import search
from tensorlrf.decomposition.methods import factors_of, method
from tensorlrf.decomposition.nonnegative._data import Data
from tensorlrf.decomposition.nonnegative._fit import (
    Options,
    given_start,
    refuse_negative,
    solve,
)
from tensorlrf.decomposition.nonnegative._kl import Divergence, Pair, ahead
from tensorlrf.decomposition.nonnegative._sweep import svd_start
from tensorlrf.decomposition.random_state import generator
from tensorlrf.decomposition.rank import Rank, check_rank_or_error, matrix_rank
from tensorlrf.errors import ArgumentError, UnsupportedError, unknown
from tensorlrf.factors import CPFactors, LowRank

FLOOR = 0.1
"""Of a start from singular vectors for multiplicative updates, as a share of the mean entry."""

LOSSES = ("frobenius", "kl")


@method(
    "nmf",
    gives=LowRank,
    on={"tensor"},
    order=(14, 14),
    law="no entry is negative; no sweep raises the loss",
    measured="nonnegative: nmf",
)
def fit_nmf(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    loss: str = "frobenius",
    init: Any = "random",
    n_iter_max: int | None = None,
    tol: float | None = None,
    n_restarts: int = 1,
    callback: Callable[[LowRank, float], Any] | None = None,
    random_state: int | torch.Generator | None = None,
) -> Fit[LowRank]:
    """A non-negative matrix as a product of two of low rank, both non-negative (NMF).

    Parameters
    ----------
    tensor : Tensor or array of shape (m, n)
        Without a negative entry. Of any float dtype; computed in float32 at least.
    rank : int, float or str, optional
        At most min(m, n); a share of the parameters in (0, 1], or "same"; or instead
    error : float, optional
        Search for a small rank within this relative error: doubled, then bisected. At rank min(m,
        n) the matrix is its own factor. With `loss="frobenius"`.
    loss : str
        "frobenius": least squares, by hierarchical alternating least squares, several rounds over
        the columns for each product with the matrix, and steps ahead. "kl": the divergence of
        Kullback and Leibler sum x log(x / y) - x + y, for counts, by multiplicative updates.
    init : str or pair of Tensor
        "random", or "svd": of each pair of singular vectors the larger of their positive and their
        negative parts; for "frobenius" either is swept within the leading subspaces of a large
        matrix first. Or (W, H) of shapes (m, r) and (r, n), non-negative; their scale is of no
        consequence.
    n_iter_max : int, optional
        Most sweeps over both factors, 300 by default.
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
    LowRank
        No entry of either factor is negative. Of `fit_nmf` a `Fit` with the relative errors at the
        start and after each sweep, none above the one before it, and of the factors as returned.
        With `loss="kl"` these are divergences over the sum of the matrix: 0 where it is met, and
        the same for twice the matrix.

    Raises
    ------
    ArgumentError
        For a negative entry (the first is named), NaN, an unknown loss or init, `error` with "kl".
    RankError
        For a rank below one or above min(m, n).
    UnsupportedError
        For more than two modes.

    References
    ----------
    Gillis & Glineur 2012 (accelerated HALS); Ang & Gillis 2019 (extrapolation); Boutsidis &
    Gallopoulos 2008 ("svd"); Zhou, Cichocki & Xie 2012 and Erichson, Mendible, Wihlborn & Kutz 2018
    (begun on a low-rank sketch); Lee & Seung 2001, "Algorithms for non-negative matrix
    factorization" (multiplicative updates).

    Examples
    --------
    >>> x = torch.rand(30, 3) @ torch.rand(3, 20)
    >>> f = tensorlrf.nmf(x, 3, random_state=1)
    >>> f.rel_error(x) < 0.02, bool((f.left >= 0).all() and (f.right >= 0).all())
    (True, True)
    """
    checked = as_tensor(tensor)
    if checked.ndim != 2:
        raise UnsupportedError(
            f"nmf takes a matrix (m, n), got a tensor of shape {tuple(checked.shape)}; use "
            "nonnegative_cp or nonnegative_tucker, or reshape it"
        )
    if loss not in LOSSES:
        raise unknown("loss", loss, LOSSES)
    refuse_negative(
        checked, "tensor", "; nmf is of non-negative matrices: clamp it, or use svd or "
        "nonnegative_cp, whose factors come as near as non-negative ones can"
    )  # fmt: skip
    rank, error = check_rank_or_error(rank, error, checked.dtype)
    if error is not None and loss == "kl":
        raise ArgumentError(f"error={error} is of loss='frobenius'; with loss='kl' give a rank")
    m, n = (int(size) for size in checked.shape)
    r = None if rank is None else matrix_rank(rank, m, n)
    given = None if r is None else partial(_given, shape=(m, n), rank=r)
    options = Options.checked(n_iter_max, tol, init, n_restarts, callback, given)
    draws = generator(random_state, checked.device)
    data = Data.of(checked)
    if loss == "kl" and r is not None:
        return _fit_kl(data, r, options, draws)

    def at(r: int) -> Fit[LowRank]:
        factors, run = solve(data, r, options, draws, data.low_rank)
        error = data.error_of((factors.left, factors.right.T))
        return Fit(factors, (*run.errors, error), run.converged, run.reason)

    return search(at, r, error, min(m, n), checked.dtype)


nmf = factors_of(fit_nmf)


def _given(pair: Any, shape: tuple[int, int], rank: int) -> CPFactors:
    """(W, H) as a model, checked."""
    try:
        left, right = pair
    except (TypeError, ValueError):
        raise ArgumentError(
            f"init is a {type(pair).__name__}; give 'random' or a pair (W, H)"
        ) from None
    right = as_tensor(right, "init: H")
    return given_start((None, (left, right.T)), shape, rank)


def _fit_kl(data: Data, rank: int, options: Options, draws: torch.Generator) -> Fit[LowRank]:
    x, root = data.tensor, math.sqrt(data.scale)
    loss = Divergence(x)

    def factors_of(pair: Pair) -> LowRank:
        w, h = pair
        return LowRank((w * root).to(data.dtype), (h * root).to(data.dtype))

    def starts() -> Iterator[Descent[Pair]]:
        if not isinstance(options.init, str):
            left, right = (u.to(x.device, x.dtype) for u in options.init.factors)
            yield loss.start(left, right.T)
            return
        svd = options.init == "svd"
        if svd:
            sides = svd_start(data, rank, draws).state.balanced
            # A multiplicative update leaves a zero where it is.
            w, h = (u.clamp_min(FLOOR * float(u.mean())) for u in sides)
            yield loss.start(w, h.T)
        for _ in range(options.n_restarts - svd):
            w, h = (
                torch.rand(n, rank, generator=draws, device=x.device, dtype=x.dtype)
                for n in x.shape
            )
            yield loss.start(w, h.T)

    run = options.descend(starts(), loss.sweep, factors_of, ahead)
    factors = factors_of(run.state)
    cast_ = Pair(*(side.to(x.dtype) / root for side in (factors.left, factors.right)))
    return Fit(factors, (*run.errors, loss.of(cast_)), run.converged, run.reason)
