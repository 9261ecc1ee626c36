"""Coupled factorisation: CP models of several tensors that share factors."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import (
    Descent,
    check_iteration,
    descend_ahead,
    watch_of,
)
from tensorlrf.decomposition._input import check_sequence
from tensorlrf.decomposition._options import check_callback, check_count
from tensorlrf.decomposition.coupled._coupled_input import (
    check_slices,
    named,
    observed,
    shares_of,
    warn_if_open,
)
from tensorlrf.decomposition.coupled._coupled_sweep import Coupled, Part, State, ahead
from tensorlrf.decomposition.coupled._several import count_of_terms
from tensorlrf.decomposition.linalg._gram import descending_eigh, mode_gram, scale_of
from tensorlrf.decomposition.linalg.threads import threaded
from tensorlrf.decomposition.random_state import generator
from tensorlrf.errors import unknown
from tensorlrf.factors import CPFactors
from tensorlrf.factors.autocast import without_autocast

INITS = ("svd", "random")

SWEEPS, TOL = 500, 1e-6
"""By default."""

TRIAL = 20
"""Sweeps of each of several starts."""

Callback = Callable[[tuple[CPFactors, ...], float], Any]


@dataclass(frozen=True)
class CoupledFit:
    """The result of `fit_coupled_factorization`.

    Parameters
    ----------
    factors : tuple of CPFactors
        One a tensor; the factor of a shared mode is one and the same tensor in all that have it.
    errors : tuple of float
        Relative errors over all tensors and observed entries, by their importance: of the start,
        after each sweep, and of the factors as returned.
    part_errors : tuple of float
        Of each tensor by itself, as returned.
    converged : bool
        False where the iteration stopped for another reason than its tolerance.
    reason : str
        Why it stopped, in words.

    Examples
    --------
    >>> x, y = torch.rand(6, 5, 4), torch.rand(6, 3)
    >>> fit = tensorlrf.decomposition.fit_coupled_factorization([x, y], 2)
    >>> len(fit.factors), len(fit.part_errors), fit.error == fit.errors[-1]
    (2, 2, True)
    """

    factors: tuple[CPFactors, ...]
    errors: tuple[float, ...]
    part_errors: tuple[float, ...]
    converged: bool
    reason: str

    @property
    def error(self) -> float:
        """Over all tensors."""
        return self.errors[-1]


def coupled_factorization(
    tensors: Any,
    rank: int,
    *,
    modes: Sequence[Sequence[Hashable]] | None = None,
    masks: Sequence[Any] | None = None,
    importance: Sequence[float] | None = None,
    init: str = "svd",
    n_iter_max: int = SWEEPS,
    tol: float = TOL,
    n_restarts: int = 1,
    callback: Callback | None = None,
    random_state: int | torch.Generator | None = None,
) -> tuple[CPFactors, ...]:
    """CP models of one rank of several tensors and matrices that share modes (CMTF).

    Minimises `sum_p importance[p] ‖mask_p (X_p - [[weights_p; A, B_p, ...]])‖^2` by alternating
    least squares: a factor is found from all tensors that have its mode at once, row by row where
    entries are missing. The loss never rises. All columns have unit length; component j is the same
    one in every tensor, of the size weights_p[j], and they come by falling energy over all.

    Parameters
    ----------
    tensors : sequence of Tensor or array
        Of two modes or more each, of one float dtype; computed in float64.
    rank : int
        Components of all of them.
    modes : sequence of str, or of sequences, optional
        The names of the modes of each tensor: `["ijk", "im"]` is a tensor and a matrix that share
        the first mode. Equal names are one mode, of one size. By default all tensors share their
        first mode.
    masks : sequence of (Tensor or array or None), optional
        Of each tensor, True where an entry is observed; None where all are. Entries that are not
        may be NaN.
    importance : sequence of float, optional
        Positive factors of the squared errors of the tensors, 1 by default; `1 / ‖X_p‖^2` makes
        relative errors count alike.
    init : str
        "svd": leading left singular vectors of all unfoldings of a mode side by side; "random".
    n_iter_max : int
        Most sweeps of a start.
    tol : float
        Stop when a sweep lowers the relative error by no more than this share of it.
    n_restarts : int
        Starts, of which the best goes on after some sweeps; those beside the first are random.
    callback : callable, optional
        Called as callback(factors, error) after each sweep; returning True stops.
    random_state : int or Generator, optional

    Returns
    -------
    tuple of CPFactors
        One a tensor. `fit_coupled_factorization` gives a `CoupledFit` with the history.

    Raises
    ------
    ShapeError
        Where a shared mode has two sizes, and for names or masks that do not fit a tensor.
    ArgumentError
        For tensors that cannot be decomposed, a mask that hides all of a slice in every tensor that
        has it, and options that are none.
    RankError
        For a rank below one.

    Warns
    -----
    TensorlrfWarning
        Where fewer entries are observed than the models have parameters.

    References
    ----------
    Acar, Kolda & Dunlavy 2011; Singh & Gordon 2008 (several relations); Tomasi & Bro 2005 (missing
    entries).

    Examples
    --------
    >>> shared = torch.rand(8, 2)
    >>> x = torch.einsum("ir,jr,kr->ijk", shared, torch.rand(6, 2), torch.rand(5, 2))
    >>> y = shared @ torch.rand(2, 4)
    >>> f, g = tensorlrf.coupled_factorization([x, y], 2, modes=["ijk", "im"])
    >>> f.factors[0] is g.factors[0], f.rel_error(x) < 1e-2
    (True, True)
    """
    return fit_coupled_factorization(
        tensors,
        rank,
        modes=modes,
        masks=masks,
        importance=importance,
        init=init,
        n_iter_max=n_iter_max,
        tol=tol,
        n_restarts=n_restarts,
        callback=callback,
        random_state=random_state,
    ).factors


@without_autocast()
@threaded
def fit_coupled_factorization(
    tensors: Any,
    rank: int,
    *,
    modes: Sequence[Sequence[Hashable]] | None = None,
    masks: Sequence[Any] | None = None,
    importance: Sequence[float] | None = None,
    init: str = "svd",
    n_iter_max: int = SWEEPS,
    tol: float = TOL,
    n_restarts: int = 1,
    callback: Callback | None = None,
    random_state: int | torch.Generator | None = None,
) -> CoupledFit:
    """The same as `coupled_factorization`, with the history.

    Parameters
    ----------
    tensors, rank, modes, masks, importance, init, n_iter_max, tol, n_restarts
        As for `coupled_factorization`.
    callback, random_state
        As for `coupled_factorization`.

    Returns
    -------
    CoupledFit

    Raises
    ------
    ArgumentError, ShapeError, RankError
        As `coupled_factorization`.

    Examples
    --------
    >>> x, y = torch.rand(6, 5, 4), torch.rand(6, 3)
    >>> tensorlrf.decomposition.fit_coupled_factorization([x, y], 2).factors[1].shape
    (6, 3)
    """
    check_iteration(n_iter_max, tol)
    check_callback(callback, None)
    check_count("n_restarts", n_restarts, 1)
    if init not in INITS:
        raise unknown("init", init, INITS)
    r = count_of_terms(rank)
    check_sequence(tensors, "tensors", "[X, Y], which share a mode")
    given, seen = observed(tensors, masks)
    names = named(modes, given)
    shares = shares_of(importance, len(given))
    draws = generator(random_state, given[0].device)
    dtype, scale = given[0].dtype, max(map(scale_of, given))
    problem = Coupled(
        [
            Part(x.to(torch.float64) / scale, mask, own, share)
            for x, mask, own, share in zip(given, seen, names, shares, strict=True)
        ],
        r,
    )
    check_slices(problem)
    warn_if_open(problem)

    def cast(state: State) -> tuple[CPFactors, ...]:
        return _factors(problem, state, scale, dtype)

    run = descend_ahead(
        _starts(problem, init, n_restarts, draws),
        problem.sweep,
        tol,
        n_iter_max,
        ahead,
        trial=TRIAL if n_restarts > 1 else 0,
        watch=watch_of(callback, cast),
    )
    factors = cast(run.state)
    models = [f.to(torch.float64).to_dense() / scale for f in factors]
    left = [part.residual(model) for part, model in zip(problem.parts, models, strict=True)]
    whole = [part.norm for part in problem.parts]
    own = tuple(_ratio(a, b) for a, b in zip(left, whole, strict=True))
    total = _ratio(_weighted(shares, left), _weighted(shares, whole))
    reason = f"rank {r}, {run.reason}"
    return CoupledFit(factors, (*run.errors, total), own, run.converged, reason)


def _weighted(shares: Sequence[float], values: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(shares, values, strict=True))


def _ratio(squared: float, norm: float) -> float:
    return math.sqrt(squared / norm) if norm > 0 else math.sqrt(squared)


def _factors(
    problem: Coupled, state: State, scale: float, dtype: torch.dtype
) -> tuple[CPFactors, ...]:
    energy = sum(p.share * w.square() for p, w in zip(problem.parts, state.weights, strict=True))
    assert isinstance(energy, Tensor)
    order = energy.argsort(descending=True, stable=True)
    own = {name: f[:, order].to(dtype).contiguous() for name, f in state.factors.items()}
    return tuple(
        CPFactors((w[order] * scale).to(dtype), tuple(own[name] for name in part.names))
        for part, w in zip(problem.parts, state.weights, strict=True)
    )


# ---- starts --------------------------------------------------------------------------------------


def _starts(
    problem: Coupled, init: str, n_restarts: int, draws: torch.Generator
) -> Iterator[Descent[State]]:
    for k in range(n_restarts):
        by_svd = init == "svd" and k == 0
        start_of = {}
        for name, n in problem.sizes.items():
            start = _normal(n, problem.rank, draws)
            if by_svd:
                found = _leading(problem, name)[:, : problem.rank]
                start[:, : found.shape[1]] = found
            start_of[name] = start
        yield problem.descent(start_of)


def _leading(problem: Coupled, name: Hashable) -> Tensor:
    """Left singular vectors of all unfoldings along a mode, side by side."""
    grams = [
        part.share * mode_gram(part.tensor, part.names.index(name))
        for part in problem.parts
        if name in part.names
    ]
    return descending_eigh(torch.stack(grams).sum(0))[1]


def _normal(n: int, r: int, draws: torch.Generator) -> Tensor:
    return torch.randn(n, r, generator=draws, dtype=torch.float64, device=draws.device)
