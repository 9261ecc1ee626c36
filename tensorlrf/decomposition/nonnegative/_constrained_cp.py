"""CP of factors that are confined to sets, or made sparse or smooth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import as_tensor
from tensorlrf.decomposition.methods import factors_of, method
from tensorlrf.decomposition.nonnegative._constrained_sweep import (
    ConstrainedSweep,
    Iterate,
    Problem,
)
from tensorlrf.decomposition.nonnegative._constraints import factors_of as wanted_of
from tensorlrf.decomposition.nonnegative._data import Data
from tensorlrf.decomposition.nonnegative._fit import Options, search_rank
from tensorlrf.decomposition.random_state import generator
from tensorlrf.decomposition.rank import Rank, check_rank_or_error, cp_rank
from tensorlrf.factors import CPFactors


@method(
    "constrained_cp",
    gives=CPFactors,
    on={"tensor"},
    order=(16, 16),
    law="every factor lies in its set; planted factors are found",
)
def fit_constrained_cp(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    constraints: Any = "nonnegative",
    n_iter_max: int | None = None,
    tol: float | None = None,
    n_restarts: int = 1,
    callback: Callable[[CPFactors, float], Any] | None = None,
    random_state: int | torch.Generator | None = None,
) -> Fit[CPFactors]:
    """A sum of rank-one tensors whose columns are simplex, monotone, unimodal, sparse, smooth, ...

    Minimises `‖X - sum_j a_j o b_j o ...‖² / 2 + penalties` for X, the tensor over its norm, with
    columns in given sets. Each factor in turn is solved by the alternating direction method of
    multipliers (ADMM), of which one Cholesky factor serves all rounds.

    Parameters
    ----------
    tensor : Tensor or array of shape (n_1, ..., n_N), N >= 2
        Of any float dtype, of any sign; computed in float32 at least.
    rank : int, float or str, optional
        Terms: an int, a share of the parameters in (0, 1], or "same"; or instead
    error : float, optional
        Search for a small rank within this relative error: doubled, then bisected.
    constraints : str, list or mapping
        A word for all modes, a list with an entry for each (None for none), or a mapping from modes
        to entries. An entry is a word, (word, strength), or a list of these: "nonnegative";
        "simplex", non-negative with sum one; "monotone", not falling; "decreasing", not rising;
        "unimodal", rising and then falling; "orthogonal", orthonormal columns; ("l1", strength) and
        ("smooth", strength), penalties on the sum of absolute values, and on that of squared
        differences of neighbours. "nonnegative" goes with all but the last of the sets, penalties
        with every one of them but "orthogonal", and "simplex" with "smooth" alone.
    n_iter_max : int, optional
        Most sweeps over all modes, 300 by default.
    tol : float, optional
        Stop when a sweep lowers the error, penalties included, by no more than this share of it; by
        default when more sweeps would gain little.
    n_restarts : int
        Starts that are tried for ten sweeps; the best goes on.
    callback : callable, optional
        Called as callback(factors, error) after each sweep that is kept; returning True stops, and
        the factors of the smallest error come back.
    random_state : int or Generator, optional
        torch's global generator is left alone.

    Returns
    -------
    CPFactors
        Every column is in its set, to the rounding of the dtype. Columns of "simplex" and
        "orthogonal" modes are as these say, all others have unit length; components come with
        falling weights. Of `fit_constrained_cp` a `Fit` with the errors at the start and after each
        sweep, none above the one before it, and the relative error of the factors as returned.
        Those on the way are roots of the relative squared error and twice the penalties together:
        without penalties, relative errors.

    Raises
    ------
    ArgumentError
        For an unknown word, constraints that contradict each other, a strength that is none, a list
        of another length than the number of modes, and what cannot be decomposed.
    RankError
        For a bad rank, and one above the size of a mode that is to be orthogonal.

    Warns
    -----
    TensorlrfWarning
        Where `error` is not met at any rank.

    Notes
    -----
    A factor is taken only where it lowers what is minimised: with constraints that are convex ADMM
    finds such a one unless there is none. Those of "unimodal" are not convex; its columns are still
    unimodal, and nothing rises.

    A model does not change where one factor grows and another shrinks. So where a factor has a
    penalty, columns of others whose scale is free have length one at the most while it is fitted.

    References
    ----------
    Huang, Sidiropoulos & Liavas 2016 (AO-ADMM); Held, Wolfe & Crowder 1974 (simplex); Best &
    Chakravarti 1990 (monotone); Stout 2008, "Unimodal regression via prefix isotonic regression";
    Schonemann 1966 and Sorensen et al. 2012 (orthogonal).

    Examples
    --------
    >>> planted = tensorlrf.CPFactors(torch.ones(2), [torch.rand(n, 2) for n in (6, 7, 8)])
    >>> tensor = planted.to_dense()
    >>> f = tensorlrf.constrained_cp(
    ...     tensor, 2, constraints=["simplex", "nonnegative", ["nonnegative", ("smooth", 0.01)]],
    ...     random_state=1)
    >>> torch.allclose(f.factors[0].sum(0), torch.ones(2)), bool((f.factors[1] >= 0).all())
    (True, True)
    """
    checked = as_tensor(tensor)
    rank, error = check_rank_or_error(rank, error, checked.dtype)
    shape = tuple(checked.shape)
    r = None if rank is None else cp_rank(rank, shape)
    options = Options.checked(n_iter_max, tol, "random", n_restarts, callback, None)
    wanted = wanted_of(constraints, shape, r)
    draws = generator(random_state, checked.device)
    data = Data.of(checked)
    problem = Problem.of(data, wanted)

    def sweep(iterate: Iterate) -> tuple[Iterate, float]:
        return ConstrainedSweep(problem, iterate).run()

    def at(r: int) -> Fit[CPFactors]:
        starts = problem.starts(r, options.n_restarts, draws)
        run = options.descend(starts, sweep, problem.factors)
        factors = problem.factors(run.state)
        errors = (*run.errors, data.error_of(factors.factors, factors.weights))
        return Fit(factors, errors, run.converged, run.reason)

    if r is not None:
        return at(r)
    assert error is not None  # one of the two is given
    most = checked.numel() // max(shape)
    orthogonal = [n for n, factor in zip(shape, wanted, strict=True) if factor.orthogonal]
    return search_rank(at, error, min([most, *orthogonal]), checked.dtype)


constrained_cp = factors_of(fit_constrained_cp)
