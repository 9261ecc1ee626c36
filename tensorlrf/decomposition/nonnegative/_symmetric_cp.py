"""CP of a symmetric tensor, whose factors are one and the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import Descent
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import as_tensor
from tensorlrf.decomposition.linalg._spectrum import ratio
from tensorlrf.decomposition.methods import factors_of, method
from tensorlrf.decomposition.nonnegative._data import Data
from tensorlrf.decomposition.nonnegative._fit import Options, search_rank
from tensorlrf.decomposition.nonnegative._symmetric_sweep import Symmetric, Terms
from tensorlrf.decomposition.random_state import generator
from tensorlrf.decomposition.rank import Rank, check_rank_or_error, cp_rank
from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import CPFactors

ROUNDINGS = 16
"""Of the dtype, by which a tensor may differ from what a swap of modes makes of it."""


@method(
    "symmetric_cp",
    gives=CPFactors,
    on={"tensor"},
    order=(17, 17),
    law="one factor for all modes; no step raises the error",
)
def fit_symmetric_cp(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
    n_restarts: int = 4,
    callback: Callable[[CPFactors, float], Any] | None = None,
    random_state: int | torch.Generator | None = None,
) -> Fit[CPFactors]:
    """A sum of symmetric rank-one tensors.

    Minimises `‖tensor - sum_j w_j a_j o a_j o ...‖` over columns of unit length and weights of
    either sign, by damped Gauss-Newton steps for the columns, with the weights of least squares
    after each. A matrix has its eigenvectors, which are optimal.

    Parameters
    ----------
    tensor : Tensor or array of shape (n, ..., n)
        The same under every permutation of its modes, but for rounding. Of any float dtype;
        computed in float32 at least.
    rank : int, float or str, optional
        Terms: an int, a share of the parameters in (0, 1], in which the factor counts for every
        mode, or "same"; or instead
    error : float, optional
        Search for a small rank within this relative error: doubled, then bisected.
    n_iter_max : int, optional
        Most steps, 300 by default.
    tol : float, optional
        Stop when a step lowers the error by no more than this share of it; by default when more
        steps would gain little.
    n_restarts : int
        Random starts that are tried for ten steps; the best goes on.
    callback : callable, optional
        Called as callback(factors, error) after each step that is kept; returning True stops, and
        the factors of the smallest error come back.
    random_state : int or Generator, optional
        torch's global generator is left alone.

    Returns
    -------
    CPFactors
        All of whose factors are equal, weights from the largest in size down. Of
        `fit_symmetric_cp` a `Fit` with the relative errors at the start and after each step, none
        above the one before it, and of the factors as returned.

    Raises
    ------
    ShapeError
        For modes of different sizes.
    ArgumentError
        For a tensor that is not symmetric, with how far it is, and what cannot be decomposed.
    RankError
        For a bad rank.

    Warns
    -----
    TensorlrfWarning
        Where `error` is not met at any rank.

    References
    ----------
    Kolda 2015, "Numerical optimization for symmetric tensor decomposition"; Levenberg 1944 and
    Marquardt 1963 (damping).

    Examples
    --------
    >>> a = torch.randn(6, 2)
    >>> tensor = tensorlrf.CPFactors(torch.tensor([2.0, -1.0]), (a, a, a)).to_dense()
    >>> f = tensorlrf.symmetric_cp(tensor, 2, random_state=1)
    >>> f.rel_error(tensor) < 1e-3, torch.equal(f.factors[0], f.factors[2])
    (True, True)
    """
    checked = as_tensor(tensor)
    rank, error = check_rank_or_error(rank, error, checked.dtype)
    shape = tuple(checked.shape)
    r = None if rank is None else cp_rank(rank, shape)
    options = Options.checked(n_iter_max, tol, "random", n_restarts, callback, None)
    draws = generator(random_state, checked.device)
    if len(set(shape)) > 1:
        raise ShapeError(
            f"tensor has shape {shape}; a symmetric one has modes of one size: use cp, or "
            "nonnegative_cp"
        )
    data = Data.of(checked)
    _check_symmetric(data)
    problem = Symmetric(data)

    def factors_of(terms: Terms) -> CPFactors:
        order = terms.weights.abs().argsort(descending=True, stable=True)
        column = terms.columns[:, order].to(data.dtype)
        weights = (terms.weights[order] * data.scale).to(data.dtype)
        return CPFactors(weights, tuple(column.clone() for _ in shape))

    def at(r: int) -> Fit[CPFactors]:
        starts = _starts(problem, r, options.n_restarts, draws)
        run = options.descend(starts, problem.sweep, factors_of)
        factors = factors_of(run.state)
        errors = (*run.errors, data.error_of(factors.factors, factors.weights))
        return Fit(factors, errors, run.converged, run.reason)

    if r is not None:
        return at(r)
    assert error is not None  # one of the two is given
    return search_rank(at, error, checked.numel() // shape[0], checked.dtype)


symmetric_cp = factors_of(fit_symmetric_cp)


def _starts(
    problem: Symmetric, rank: int, count: int, draws: torch.Generator
) -> Iterator[Descent[Terms]]:
    tensor = problem.data.tensor
    n = tensor.shape[0]
    if tensor.ndim == 2:
        wide = tensor.to(torch.float64)
        values, vectors = torch.linalg.eigh((wide + wide.T) / 2)
        order = values.abs().argsort(descending=True)[:rank]
        more = vectors[:, :1].expand(-1, rank - len(order))
        yield problem.begun(torch.cat([vectors[:, order], more], 1))
        return
    for _ in range(count):
        drawn = torch.randn(n, rank, generator=draws, device=tensor.device, dtype=tensor.dtype)
        yield problem.begun(drawn.to(torch.float64))


def _check_symmetric(data: Data) -> None:
    """Raise ArgumentError for a tensor that swaps of neighbouring modes change."""
    tensor = data.tensor
    for k in range(tensor.ndim - 1):
        apart = ratio(_square(tensor - tensor.transpose(k, k + 1)), data.square)
        if apart > ROUNDINGS * torch.finfo(data.dtype).eps:
            raise ArgumentError(
                f"tensor is not symmetric: swapping modes {k} and {k + 1} changes it by "
                f"{apart:.3g} of its norm; take the mean over all orders of its modes, or use cp"
            )


def _square(tensor: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float64)
    return norm.square()
