"""Tucker decomposition of factors and a core without a negative entry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import as_tensor
from tensorlrf.decomposition.methods import factors_of, method
from tensorlrf.decomposition.nonnegative._data import Data
from tensorlrf.decomposition.nonnegative._fit import Options, check_reach, search_rank
from tensorlrf.decomposition.nonnegative._tucker_sweep import (
    Model,
    TuckerSweep,
    ahead,
    corner,
    random_start,
    true_error,
)
from tensorlrf.decomposition.random_state import generator
from tensorlrf.decomposition.rank import Rank, check_rank_or_error, tucker_ranks
from tensorlrf.factors import TuckerFactors


@method(
    "nonnegative_tucker",
    gives=TuckerFactors,
    on={"tensor"},
    order=(15, 15),
    law="no entry is negative; no sweep raises the error",
    measured="nonnegative: Tucker",
)
def fit_nonnegative_tucker(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
    n_restarts: int = 1,
    callback: Callable[[TuckerFactors, float], Any] | None = None,
    random_state: int | torch.Generator | None = None,
) -> Fit[TuckerFactors]:
    """A non-negative core multiplied by a non-negative matrix along each mode.

    Minimises `‖tensor - core x_1 A_1 x_2 A_2 ...‖` over non-negative entries: factors by
    hierarchical alternating least squares, several rounds over the columns for each contraction of
    the tensor, the core by projected gradients with momentum, and steps ahead. Columns of the
    factors have unit length.

    Parameters
    ----------
    tensor : Tensor or array of shape (n_1, ..., n_N), N >= 2
        Of any float dtype; computed in float32 at least. It may have negative entries, as measured
        data have: what is left is then no less than they are.
    rank : int, tuple, float or str, optional
        One for each mode, or an int for all; a share of the parameters in (0, 1], or "same"; or
        instead
    error : float, optional
        Search for a small rank within this relative error, the same for all modes but for shorter
        ones: doubled, then bisected.
    n_iter_max : int, optional
        Most sweeps over factors and core, 300 by default.
    tol : float, optional
        Stop when a sweep lowers the error by no more than this share of it; by default when more
        sweeps would gain little.
    n_restarts : int
        Starts that are tried for ten sweeps; the best goes on.
    callback : callable, optional
        Called as callback(factors, error) after each sweep that is kept; returning True stops, and
        the factors of the smallest error come back.
    random_state : int or Generator, optional
        torch's global generator is left alone.

    Returns
    -------
    TuckerFactors
        No entry is negative. Of `fit_nonnegative_tucker` a `Fit` with the relative errors at the
        start and after each sweep, none above the one before it, and of the factors as returned.

    Raises
    ------
    ArgumentError, ShapeError, RankError
        For what cannot be decomposed, ranks above the sizes or of another number, and an error
        below what negative entries leave to every model.

    Warns
    -----
    TensorlrfWarning
        Where `error` is not met at any rank.

    References
    ----------
    Phan & Cichocki 2011, "Extended HALS algorithm for nonnegative Tucker decomposition and its
    applications for multiway analysis and classification"; Gillis & Glineur 2012 (rounds over the
    columns); O'Donoghue & Candes 2015 (momentum that begins anew).

    Examples
    --------
    >>> tensor = tensorlrf.TuckerFactors(
    ...     torch.rand(2, 2, 3), [torch.rand(n, r) for n, r in ((8, 2), (7, 2), (9, 3))]).to_dense()
    >>> f = tensorlrf.nonnegative_tucker(tensor, (2, 2, 3), random_state=1)
    >>> f.rel_error(tensor) < 0.05, bool((f.core >= 0).all())
    (True, True)
    """
    checked = as_tensor(tensor)
    rank, error = check_rank_or_error(rank, error, checked.dtype)
    shape = tuple(checked.shape)
    ranks = None if rank is None else tucker_ranks(rank, shape, range(len(shape)))
    options = Options.checked(n_iter_max, tol, "random", n_restarts, callback, None)
    draws = generator(random_state, checked.device)
    data = Data.of(checked)

    def sweep(model: Model) -> tuple[Model, float]:
        return TuckerSweep(data, model).run()

    def at(ranks: tuple[int, ...]) -> Fit[TuckerFactors]:
        if ranks == shape:
            starts = [corner(data, ranks)]
        else:
            starts = [random_start(data, ranks, draws) for _ in range(options.n_restarts)]
        run = options.descend(starts, sweep, lambda model: model.factors_of(data), ahead)
        factors = run.state.factors_of(data)
        work = data.tensor.dtype
        core = (factors.core.to(torch.float64) / data.scale).to(work)
        left = true_error(data, Model(core, tuple(u.to(work) for u in factors.factors)))
        return Fit(factors, (*run.errors, left), run.converged, run.reason)

    if ranks is not None:
        return at(ranks)
    assert error is not None  # one of the two is given
    check_reach(data, error)
    most = max(shape)
    return search_rank(lambda r: at(tuple(min(r, n) for n in shape)), error, most, checked.dtype)


nonnegative_tucker = factors_of(fit_nonnegative_tucker)
