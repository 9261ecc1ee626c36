"""PARAFAC2 of slices of unequal rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import (
    Descent,
    beyond,
    check_iteration,
    descend_ahead,
    watch_of,
)
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._options import check_callback, check_count
from tensorlrf.decomposition.coupled._parafac2_sweep import Factors3, Narrow, Slices, State
from tensorlrf.decomposition.coupled._several import count_of_terms, together, unit_columns
from tensorlrf.decomposition.linalg._gram import descending_eigh, identity, scale_of
from tensorlrf.decomposition.linalg.threads import threaded
from tensorlrf.decomposition.methods import factors_of
from tensorlrf.decomposition.random_state import generator
from tensorlrf.errors import ArgumentError, RankError, ShapeError, unknown
from tensorlrf.factors import Parafac2Factors
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.factors.kinds import is_format

INITS = ("svd", "random")

SWEEPS, TOL = 1000, 1e-6
"""By default."""

TRIAL = 50
"""Sweeps of each of several starts."""

Callback = Callable[[Parafac2Factors, float], Any]

Watch = Callable[[State, float], bool | None]


@without_autocast()
@threaded
def fit_parafac2(
    slices: Any,
    rank: int,
    *,
    init: Any = "svd",
    n_iter_max: int = SWEEPS,
    tol: float = TOL,
    n_restarts: int = 1,
    callback: Callback | None = None,
    random_state: int | torch.Generator | None = None,
) -> Fit[Parafac2Factors]:
    """Slices `X_k = P_k B diag(A[k]) C^T` with orthonormal P_k, by direct fitting (PARAFAC2).

    Each sweep finds the best P_k of every slice, the polar factor of X_k C diag(A[k]) B^T, and
    makes steps of alternating least squares for A, B and C on the projected slices P_k^T X_k; the
    loss never rises. Sweeps begin ahead along the last change where that pays; slices of many
    columns are first swept within their leading directions, where that costs little. Components
    come with falling weights, columns of A, B and C have unit length.

    Parameters
    ----------
    slices : sequence of Tensor or array, each (I_k, J), or one (K, I, J)
        Of equal columns and rows of their own; of any float dtype, computed in float64.
    rank : int
        Components, at most the least number of rows.
    init : str or Parafac2Factors
        "svd": C from the leading right singular vectors of all slices, ones and the identity for
        the others; "random"; or the start itself, of these slices and this rank.
    n_iter_max : int
        Most sweeps of a start, over the slices and within leading directions each.
    tol : float
        Stop when a sweep lowers the relative error by no more than this share of it.
    n_restarts : int
        Random starts, each of which is given some sweeps; the best one goes on. With "svd" the
        others beside it are random.
    callback : callable, optional
        Called as callback(factors, error) after each sweep; returning True stops.
    random_state : int or Generator, optional

    Returns
    -------
    Parafac2Factors
        Of `fit_parafac2` a `Fit` with the relative errors: of the start, after each sweep, and of
        the factors as returned.

    Raises
    ------
    ShapeError
        For slices of unequal columns, with the first that differs.
    RankError
        For a rank below one or above the rows of a slice.
    ArgumentError
        For slices that cannot be decomposed, an unknown init, or a start that does not fit.

    Notes
    -----
    Components are found up to their order and scale, and up to a sign in each slice: P_k B and
    A[k] may change theirs together.

    References
    ----------
    Kiers, ten Berge & Bro 1999; Bro & Andersson 1998, "Improving the speed of
    multiway algorithms, part II: compression".

    Examples
    --------
    >>> slices = [torch.rand(n, 6) for n in (5, 8, 7)]
    >>> f = tensorlrf.parafac2(slices, 2)
    >>> p = f.projection_list[1]
    >>> f.rows, torch.allclose(p.T @ p, torch.eye(2), atol=1e-5)
    ((5, 8, 7), True)
    """
    given = _checked(slices)
    r = _checked_rank(rank, given)
    check_iteration(n_iter_max, tol)
    check_callback(callback, None)
    check_count("n_restarts", n_restarts, 1)
    draws = generator(random_state, given[0].device)
    dtype, scale = given[0].dtype, max(map(scale_of, given))
    work = Slices([x.to(torch.float64) / scale for x in given], r)

    def cast(state: State) -> Parafac2Factors:
        return _factors(work, state, scale, dtype)

    def descended(
        on: Slices, starts: Iterable[Descent[State]], more: int, seen: Watch | None
    ) -> Descent[State]:
        return descend_ahead(
            starts,
            on.sweep,
            tol,
            n_iter_max,
            _ahead,
            trial=TRIAL if more > 0 else 0,
            enough=on.rounding,
            watch=seen,
        )

    watched = watch_of(callback, cast)
    small = None if is_format(init, Parafac2Factors) else Narrow.of(work)
    if small is None:
        run = descended(
            work, _starts(work, init, n_restarts, draws, scale), n_restarts - 1, watched
        )
    else:
        starts = _starts(small.slices, init, n_restarts, draws, scale)
        begun = descended(small.slices, starts, n_restarts - 1, None).state
        run = descended(work, [small.widened(begun, work)], 0, watched)
    factors = cast(run.state)
    errors = (*run.errors, factors.to(torch.float64).rel_error(given))
    return Fit(factors, errors, run.converged, f"rank {r}, {run.reason}")


parafac2 = factors_of(fit_parafac2)


def _ahead(here: State, last: State, reach: float) -> State:
    a, b, c = beyond(here.factors, last.factors, reach)
    return State((a, b, c), here.projections, here.sweeps)


def _starts(
    work: Slices, init: Any, n_restarts: int, draws: torch.Generator, scale: float
) -> Iterator[Descent[State]]:
    if is_format(init, Parafac2Factors):
        yield _given(work, init, scale)
    elif init not in INITS:
        raise unknown("init", init, INITS)
    elif init == "svd":
        yield work.descent(_by_svd(work, draws))
    else:
        yield work.descent(_drawn(work, draws))
    for _ in range(n_restarts - 1):
        yield work.descent(_drawn(work, draws))


def _by_svd(work: Slices, draws: torch.Generator) -> Factors3:
    _, vectors = descending_eigh(work.square())
    c = vectors[:, : work.rank]
    more = work.rank - c.shape[1]
    if more > 0:
        c = torch.cat([c, _normal(c.shape[0], more, draws)], dim=1)
    return c.new_ones(work.count, work.rank), identity(work.rank, c), c


def _drawn(work: Slices, draws: torch.Generator) -> Factors3:
    """C of random mixtures of the rows that there are, A positive, B near the identity."""
    r, rows = work.rank, work.stack.flatten(0, 1)
    a = 1 + 0.5 * _normal(work.count, r, draws).tanh()
    c = rows.T @ _normal(rows.shape[0], r, draws)
    return a, identity(r, a) + 0.5 * _normal(r, r, draws), unit_columns(c)[0]


def _normal(n: int, r: int, draws: torch.Generator) -> Tensor:
    return torch.randn(n, r, generator=draws, dtype=torch.float64, device=draws.device)


def _given(work: Slices, init: Parafac2Factors, scale: float) -> Descent[State]:
    if init.rows != work.rows or init.shape[1] != work.columns or init.rank != work.rank:
        raise ArgumentError(
            f"init has rank {init.rank}, {init.shape[1]} columns and slices of {init.rows} rows; "
            f"this is rank {work.rank}, {work.columns} columns and {work.rows}"
        )
    a, b, c = (f.detach().to(work.stack) for f in init.factors)
    return work.descent((a * init.weights.detach().to(a) / scale, b, c))


def _factors(work: Slices, state: State, scale: float, dtype: torch.dtype) -> Parafac2Factors:
    a, norms_a = unit_columns(state.factors[0])
    b, norms_b = unit_columns(state.factors[1])
    c, norms_c = unit_columns(state.factors[2])
    weights = norms_a * norms_b * norms_c * scale
    order = weights.argsort(descending=True, stable=True)
    parts = [part[..., order].to(dtype).contiguous() for part in (weights, a, b, c)]
    projections = work.unpacked(state.projections).to(dtype).contiguous()
    return Parafac2Factors(parts[0], (parts[1], parts[2], parts[3]), projections, work.rows)


def _checked(slices: Any) -> list[Tensor]:
    if getattr(slices, "ndim", 0) == 3:
        slices = list(slices)
    given = together(slices, "slices", "[(5, 8), (7, 8)], matrices of equal columns")
    for k, one in enumerate(given):
        if one.ndim != 2:
            raise ShapeError(f"slices[{k}] has shape {tuple(one.shape)}; each is a matrix (I_k, J)")
        if one.shape[1] != given[0].shape[1]:
            raise ShapeError(
                f"slices[{k}] has {one.shape[1]} columns but slices[0] has {given[0].shape[1]}; "
                "rows may differ from slice to slice, columns are the same in all"
            )
    return given


def _checked_rank(rank: Any, slices: Sequence[Tensor]) -> int:
    r = count_of_terms(rank)
    for k, one in enumerate(slices):
        if r > one.shape[0]:
            raise RankError(
                f"rank={r} is above {one.shape[0]}, the rows of slices[{k}], whose projection has "
                f"orthonormal columns; use at most {min(x.shape[0] for x in slices)}"
            )
    return r
