"""Error-preserving correction of a CP model: the same error by smaller terms."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from operator import mul
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tensorlrf.decomposition._descent import check_iteration
from tensorlrf.decomposition._fit import Fit, factors_of
from tensorlrf.decomposition._input import as_tensor
from tensorlrf.decomposition.cp._problem import Problem, pose
from tensorlrf.decomposition.cp._state import CPState, make_state
from tensorlrf.decomposition.linalg.multilinear._mttkrp import CutTensor
from tensorlrf.decomposition.linalg.multilinear._tree import TorchTree
from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import CPFactors
from tensorlrf.factors.kinds import check_format

SWEEPS, TOL = 300, 1e-3
CLOSE = 1e-9
"""How far inside the bound a step ends, as a share of it: rounding of float64 stays within."""

ROUNDING = 1e-6
"""Share of an error by which one that was told in float32 may be below it."""

SPREAD, HALVINGS = 46.0, 60
"""Of the interval of logarithms around that of the largest eigenvalue, 1e-20 to 1e20 of it, and how
often it is halved: to the rounding of float64."""

Callback = Callable[[CPFactors, float], Any]


def fit_stabilize_cp(
    factors: CPFactors,
    tensor: Any,
    error: float | None = None,
    *,
    n_iter_max: int | None = None,
    tol: float | None = None,
    callback: Callback | None = None,
) -> Fit[CPFactors]:
    """The sum of squared norms of the rank-one terms made small, at an error no larger than given.

    Terms that are large and cancel make a model that small changes of its factors ruin: in low
    precision, and in training. One factor after the other becomes the one of the smallest norm
    whose error keeps the bound, with all others at unit columns; no step raises the sum.

    Parameters
    ----------
    factors : CPFactors
        Of `tensor`, as `cp` gives them.
    tensor : Tensor or array of shape (n_1, ..., n_N), N >= 2
        Of any float dtype; computed in float64.
    error : float, optional
        The bound on the relative error; by default the error of `factors` themselves.
    n_iter_max : int, optional
        Sweeps over all modes, 300 by default.
    tol : float, optional
        Stop when ten sweeps lower the sum by less than this share of it, 1e-3 by default; 0 makes
        all sweeps.
    callback : callable, optional
        Called as callback(factors, error) after each sweep; returning True stops.

    Returns
    -------
    CPFactors
        In the dtype of `factors`. Of `fit_stabilize_cp` a `Fit` with the errors of the sweeps.

    Raises
    ------
    ArgumentError
        For an error below what these factors reach, both of which are named, and for bad options.
    ShapeError
        For factors of another shape.

    References
    ----------
    Phan, Tichavsky & Cichocki 2019, "Error preserving correction: a method for CP decomposition at
    a target error bound".

    Examples
    --------
    >>> tensor = torch.randn(6, 6, 6, generator=torch.Generator().manual_seed(0))
    >>> large = tensorlrf.cp(tensor, 8, solver="als", init="random", random_state=0)
    >>> small = tensorlrf.stabilize_cp(large, tensor)
    >>> float(small.weights.square().sum()) <= float(large.weights.square().sum())
    True
    """
    check_format(factors, (CPFactors,), "factors", "pass CPFactors, as cp gives")
    checked = as_tensor(tensor).detach()
    if tuple(checked.shape) != tuple(factors.shape):
        raise ShapeError(
            f"factors are of a tensor of shape {tuple(factors.shape)}, but tensor has shape "
            f"{tuple(checked.shape)}; give the one that they were made of"
        )
    check_iteration(n_iter_max, tol)
    problem = pose(checked.to(torch.float64))
    start = problem.state_of(factors.map(lambda part: part.detach().to(checked.device)))
    reached = problem.error(start)
    bound = reached if error is None else _checked_bound(error, reached)
    sweeps = SWEEPS if n_iter_max is None else n_iter_max
    tree = _Correction(problem, start, bound)
    sizes, errors = [tree.size], [reached]
    converged, reason = False, f"n_iter_max={sweeps} sweeps were made"
    for number in range(1, sweeps + 1):
        tree.sweep()
        sizes.append(tree.size)
        errors.append(tree.error)
        if callback is not None and callback(_given(problem, tree.state, factors), tree.error):
            reason = f"the callback asked to stop after sweep {number}"
            break
        share = TOL if tol is None else tol
        if share > 0 and number >= 10 and sizes[-11] - sizes[-1] <= share * sizes[-11]:
            converged = True
            reason = f"ten sweeps lower the squared norms of the terms by less than {share:g}"
            break
    found = _given(problem, tree.state, factors)
    told = f"{sizes[0]:.3g} -> {sizes[-1]:.3g} of the squared norm of the tensor in all terms"
    true = found.rel_error(checked)
    return Fit(found, (*errors, float(true)), converged, f"{told}; {reason}")


stabilize_cp = factors_of(fit_stabilize_cp)


def _checked_bound(error: float, reached: float) -> float:
    if isinstance(error, bool) or not isinstance(error, (int, float)) or not 0 <= error < math.inf:
        raise ArgumentError(f"error={error!r} must be a number of at least 0, the relative error")
    if error < reached * (1 - ROUNDING):
        raise ArgumentError(
            f"error={error:g} is below {reached:.6g}, which these factors reach; ask for that at "
            "least, or give factors of more sweeps or of a larger rank"
        )
    return max(float(error), reached)


def _given(problem: Problem, state: CPState, like: CPFactors) -> CPFactors:
    """In the dtype of the factors that were given."""
    return problem.factors(state).to(dtype=like.dtype)


class _Correction(TorchTree):
    """Unit columns of all modes, and the weights of the terms beside them.

    size   the sum of their squares over ||X||^2, and
    error  the relative error, after the last step
    """

    def __init__(self, problem: Problem, start: CPState, bound: float) -> None:
        self.tensor: CutTensor = problem.data
        self.cut, self.fixed = problem.data.cut, frozenset()
        self.columns = [u[:, 0].clone() for u in start.factors]
        self.weights = start.weights[0].clone()
        self.square = problem.norm**2 or 1.0
        self.most = bound**2 * self.square
        self.error = problem.error(start)

    @property
    def size(self) -> float:
        return float(self.weights.square().sum()) / self.square

    @property
    def state(self) -> CPState:
        return make_state([u[:, None] for u in self.columns], self.weights[None])

    def sweep(self) -> None:
        self._over_modes()

    def _update(self, mode: int, rhs: Tensor) -> None:
        """min ||A||^2 with ||X_(k) - A Z^T||^2 <= bound^2 ||X||^2: A = X_(k) Z (Z^T Z + mu)^-1 with
        the mu >= 0 at which the bound is met, the root of a secular equation."""
        grams = [u.T @ u for k, u in enumerate(self.columns) if k != mode]
        values, vectors = torch.linalg.eigh(reduce(mul, grams))
        values = values.clamp_min(values[-1] * torch.finfo(torch.float64).eps)
        turned = rhs @ vectors  # (n, r)
        energies = turned.square().sum(0)
        least = self.square - float((energies / values).sum())
        spare = self.most * (1 - CLOSE) - least
        if spare <= 0:
            return

        # On the host, as numpy: a secular equation is a few numbers, many times.
        levels, shares = values.cpu().numpy(), energies.cpu().numpy()
        top = float(levels[-1])

        def excess(mu: float) -> float:
            return float(np.sum(shares / levels * np.square(mu / (levels + mu))))

        low, high = math.log(top) - SPREAD, math.log(top) + SPREAD
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if excess(math.exp(middle)) <= spare else (low, middle)
        mu = math.exp(low)
        new = (turned / (values + mu)) @ vectors.T
        length = torch.linalg.vector_norm(new, dim=0)
        if float(length.square().sum()) > float(self.weights.square().sum()):
            return
        tiny = torch.finfo(torch.float64).tiny
        self.columns[mode] = torch.where(
            length > tiny, new / length.clamp_min(tiny), self.columns[mode]
        )
        self.weights = length
        self.error = math.sqrt(max(0.0, least + excess(mu)) / self.square)
