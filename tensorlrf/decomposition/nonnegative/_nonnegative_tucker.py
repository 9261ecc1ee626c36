"""Tucker decomposition of factors and a core without a negative entry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import Descent
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import as_tensor
from tensorlrf.decomposition._options import check_modes
from tensorlrf.decomposition.methods import factors_of, method
from tensorlrf.decomposition.nonnegative._compressed import compressed
from tensorlrf.decomposition.nonnegative._data import Data
from tensorlrf.decomposition.nonnegative._fit import (
    INITS,
    Options,
    check_reach,
    end_within,
    search_rank,
)
from tensorlrf.decomposition.nonnegative._hals import MOST_ROUNDS
from tensorlrf.decomposition.nonnegative._tucker_sweep import (
    Model,
    TuckerSweep,
    ahead,
    corner,
    random_factors,
    start_from,
    svd_factors,
    true_error,
)
from tensorlrf.decomposition.random_state import generator
from tensorlrf.decomposition.rank import Rank, check_rank_or_error, tucker_ranks
from tensorlrf.errors import unknown
from tensorlrf.factors import TuckerFactors

SLOW = 3e-5
"""Gain of a sweep in small bases, as a share of the error, after which there is no other one: there
are flat places, and sweeps there cost little."""


@method(
    "nonnegative_tucker",
    gives=TuckerFactors,
    on={"tensor"},
    order=(15, 15),
    law="no entry is negative; no sweep raises the error",
    measured="nonnegative: non-negative tucker",
)
def fit_nonnegative_tucker(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    modes: Sequence[int] | None = None,
    init: str = "random",
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
        One for each of `modes`, or an int for all; a share of the parameters in (0, 1], or "same";
        or instead
    error : float, optional
        Search for a small rank within this relative error, the same for all modes but for shorter
        ones: doubled, then bisected.
    modes : sequence of int, optional
        The modes that get a factor, all by default; along the others the core keeps its size.
    init : str
        "random", or "svd": the leading singular vectors of each mode, of each the larger of its
        positive and its negative part. Either is swept within the leading subspaces of a large
        tensor first.
    n_iter_max : int, optional
        Most sweeps over factors and core, 300 by default.
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
    columns); Boutsidis & Gallopoulos 2008 ("svd"); Zhou, Cichocki & Xie 2012 (begun on a low-rank
    sketch); O'Donoghue & Candes 2015 (momentum that begins anew).

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
    listed = tuple(sorted(check_modes(modes, len(shape))))
    if rank is not None:
        asked = check_modes(modes, len(shape))
        own = dict(zip(asked, tucker_ranks(rank, shape, asked), strict=True))
    if not isinstance(init, str):
        raise unknown("init", init, INITS)
    options = Options.checked(n_iter_max, tol, init, n_restarts, callback, None)
    draws = generator(random_state, checked.device)
    data = Data.of(checked)

    def sweep(model: Model) -> tuple[Model, float]:
        return TuckerSweep(data, model).run()

    def at(ranks: tuple[int, ...]) -> Fit[TuckerFactors]:
        starts = _starts(data, ranks, listed, options, draws)
        run = options.descend(starts, sweep, lambda model: model.factors_of(data), ahead)
        factors, work = run.state.factors_of(data), data.tensor.dtype
        cast: list[Tensor | None] = [None] * len(shape)
        for k, u in zip(listed, factors.factors, strict=True):
            cast[k] = u.to(work)
        core = (factors.core.to(torch.float64) / data.scale).to(work)
        left = true_error(data, Model(core, tuple(cast)))
        return Fit(factors, (*run.errors, left), run.converged, run.reason)

    if rank is not None:
        return at(tuple(own.get(k, n) for k, n in enumerate(shape)))
    assert error is not None  # one of the two is given
    check_reach(data, error)
    most = max(shape[k] for k in listed)

    def alike(r: int) -> Fit[TuckerFactors]:
        return at(tuple(min(r, n) if k in listed else n for k, n in enumerate(shape)))

    return search_rank(alike, error, most, checked.dtype)


nonnegative_tucker = factors_of(fit_nonnegative_tucker)


def _starts(
    data: Data,
    ranks: tuple[int, ...],
    modes: tuple[int, ...],
    options: Options,
    draws: torch.Generator,
) -> list[Descent[Model]]:
    """As many as are asked for, or the one to which sweeps in small bases lead from these."""
    if ranks == data.shape:
        return [corner(data, ranks, modes)]

    def some(on: Data) -> list[Descent[Model] | None]:
        svd = options.init == "svd"
        first = [svd_factors(on, ranks, modes, draws)] if svd else []
        drawn = [random_factors(on, ranks, modes, draws) for _ in range(options.n_restarts - svd)]
        return [start_from(on, factors) for factors in (*first, *drawn)]

    small = compressed(data, ranks, draws, MOST_ROUNDS)
    if small is not None:
        found = [start for start in some(small) if start is not None]
        if found:

            def sweep(model: Model) -> tuple[Model, float]:
                return TuckerSweep(small, model).run()

            end = end_within(small, found, sweep, ahead, SLOW)
            return [Descent.at(end, true_error(data, end))]
    return [start or corner(data, ranks, modes) for start in some(data)]
