"""CP of counts by alternating Poisson regression (Chi & Kolda 2012)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import check_iteration
from tensorlrf.decomposition._options import check_callback, check_count
from tensorlrf.decomposition.generalized._counts import Along, Ratio, along
from tensorlrf.decomposition.generalized._data import Data, data_of
from tensorlrf.decomposition.generalized._lbfgs import STOPPED
from tensorlrf.decomposition.generalized._loss_fit import LossFit
from tensorlrf.decomposition.generalized._losses import POISSON
from tensorlrf.decomposition.generalized._report import relative_error, stack_of
from tensorlrf.decomposition.generalized._stack import apart, as_factors
from tensorlrf.decomposition.generalized._start import given_start, random_start
from tensorlrf.decomposition.methods import factors_of, method
from tensorlrf.decomposition.random_state import generator
from tensorlrf.decomposition.rank import Rank, check_rank_or_error, cp_rank
from tensorlrf.factors import CPFactors

SWEEPS, INNER, TOL = 1000, 10, 1e-4

SHIFT, ZERO = 1e-2, 1e-10
"""Entries below the second, as shares of their column, that should be larger, are given the first
(Chi & Kolda 2012, section 4.3.3)."""

TRIES = 8
"""Times that a shift is made a tenth of itself where it raises the loss."""


@method(
    "cp_apr",
    gives=CPFactors,
    on={"tensor"},
    law="no update raises the divergence; the KKT residual goes to zero",
)
def fit_cp_apr(
    tensor: Any,
    rank: Rank | None = None,
    *,
    n_iter_max: int | None = None,
    n_inner: int = INNER,
    tol: float | None = None,
    init: Any = "random",
    callback: Callable[[CPFactors, float], Any] | None = None,
    random_state: int | torch.Generator | None = None,
) -> LossFit[CPFactors]:
    """A sum of non-negative rank-one tensors of counts, by multiplicative updates (CP-APR).

    Minimises the sum of m - x log m over entries x of the tensor and m of the model: the
    Kullback-Leibler divergence but for what the data alone are, the likelihood of Poisson. Of a
    sparse tensor an iteration looks at the nonzeros alone. No iteration raises the loss. Columns
    have unit length, and components come with falling weights.

    Parameters
    ----------
    tensor : Tensor, array or SparseTensor of shape (n_1, ..., n_N), N >= 2
        Not negative, of any float dtype; sparse tensors of torch and of scipy are taken as well.
    rank : int, float or str
        The number of terms; a share of the parameters in (0, 1], or "same".
    n_iter_max : int, optional
        Most iterations over all modes, 1000 by default.
    n_inner : int
        Most updates of a mode in an iteration.
    tol : float, optional
        The end is where all conditions of an optimum hold to this, 1e-4 by default:
        ``max |min(B, 1 - Phi)|`` in the units of the counts.
    init : str, CPFactors or tuple
        "random", or the start: CPFactors or (weights or None, factors), not negative.
    callback : callable, optional
        Called as callback(factors, loss) after each iteration, with factors in memory of their own;
        returning True stops, and these are returned.
    random_state : int or Generator, optional
        torch's global generator is left alone.

    Returns
    -------
    CPFactors
        Of `fit_cp_apr` a `LossFit` with the losses, and how far the conditions were from being met.

    Raises
    ------
    ArgumentError, ShapeError, RankError
        For a tensor that cannot be decomposed or has a negative entry (the first one is named, with
        its value), a bad rank, start, or number of iterations.

    References
    ----------
    Chi & Kolda 2012, algorithms 1 to 3.

    Examples
    --------
    >>> rates = tensorlrf.CPFactors(torch.ones(2), tuple(torch.rand(n, 2) for n in (20, 30, 40)))
    >>> counts = torch.poisson(20 * rates.to_dense())
    >>> f = tensorlrf.cp_apr(counts, 2, random_state=0)
    >>> abs(f.to_dense().sum() / counts.sum() - 1) < 1e-3
    tensor(True)
    """
    data, _ = data_of(
        tensor, None, None, POISSON, "use generalized_cp, which has mask= and other losses"
    )
    rank, _ = check_rank_or_error(rank, None, data.dtype)
    assert rank is not None  # one of the two is
    r = cp_rank(rank, data.shape)
    check_iteration(n_iter_max, tol)
    check_count("n_inner", n_inner, 1)
    check_callback(callback, None)
    rng = generator(random_state, data.values.device)
    fresh = isinstance(init, str) and init == "random"
    start = random_start(data, POISSON, r, rng) if fresh else given_start(init, data, POISSON, r)
    state = _Model.of(apart(start, data.shape))
    sweeps = SWEEPS if n_iter_max is None else n_iter_max
    bound = TOL if tol is None else tol
    units = data.units()

    def told(loss: float) -> float:
        assert POISSON.undivided is not None  # it scales with its data
        return loss if data.scale == 1 else POISSON.undivided(loss, units)

    def factors() -> CPFactors:
        return as_factors(state.stack(), data.shape, data.scale, data.dtype)

    losses = [along(data, state.factors, 0)(state.factors[0] * state.weights).loss]
    residuals: list[float] = []
    converged, reason = False, f"n_iter_max={sweeps} iterations"
    for number in range(1, sweeps + 1):
        residual, loss = _iterate(data, state, n_inner, bound, losses[-1])
        losses.append(min(loss, losses[-1]))  # below it but for rounding
        residuals.append(residual)
        if callback is not None and callback(factors(), told(losses[-1])) is True:
            reason = f"{STOPPED} after iteration {number}"
            break
        if residual <= bound:
            converged, reason = True, f"the conditions of an optimum hold to tol={bound:g}"
            break
    found = factors()
    stack = stack_of(found, data.scale)
    return LossFit(
        found,
        (relative_error(data, POISSON, stack, None),),
        converged,
        reason,
        losses=tuple(map(told, losses)),
        loss=told(_loss(data, stack)),
        residuals=tuple(residuals),
    )


cp_apr = factors_of(fit_cp_apr)


@dataclass
class _Model:
    """Columns that sum to one, (n_k, r), and their weights (r,), float64."""

    factors: list[Tensor]
    weights: Tensor

    @classmethod
    def of(cls, given: tuple[Tensor, ...]) -> _Model:
        model = cls(list(given), torch.ones_like(given[0][0]))
        for k, f in enumerate(given):
            model.put(k, f * model.weights)
        return model

    def put(self, mode: int, factor: Tensor) -> None:
        """A factor with the weights in its columns. One that vanished becomes constant, and can
        come back."""
        self.weights = factor.sum(0)
        flat = torch.full_like(factor, 1 / len(factor))
        self.factors[mode] = torch.where(self.weights > 0, factor / self.weights, flat)

    def stack(self) -> Tensor:
        first, *rest = self.factors
        return torch.cat([first * self.weights, *rest])


def _iterate(
    data: Data, model: _Model, n_inner: int, tol: float, before: float
) -> tuple[float, float]:
    """Each mode once (algorithm 3): how far the conditions were from being met, and the loss."""
    furthest, loss = 0.0, before
    for mode in range(len(data.shape)):
        ratio = along(data, model.factors, mode)
        factor = model.factors[mode] * model.weights
        here = ratio(factor)
        factor, here = _shifted(factor, here, ratio)
        for inner in range(n_inner):
            violation = float(torch.minimum(factor, 1 - here.phi).abs().max())
            furthest = max(furthest, violation if not inner else 0.0)
            if violation <= tol:
                break
            factor = factor * here.phi
            here = ratio(factor)
        loss = here.loss
        model.put(mode, factor)
    return furthest, loss


def _shifted(factor: Tensor, here: Ratio, ratio: Along) -> tuple[Tensor, Ratio]:
    """Zeros that the gradient would have larger, which no product changes, moved away from zero as
    far as that lowers the loss."""
    weights = factor.sum(0)
    stuck = (factor <= ZERO * weights) & (here.phi > 1)
    if not bool(stuck.any()):
        return factor, here
    size = SHIFT * torch.maximum(weights, weights.mean())
    for _ in range(TRIES):
        moved = torch.where(stuck, factor + size, factor)
        there = ratio(moved)
        if there.loss <= here.loss:
            return moved, there
        size = size / 10
    return factor, here


def _loss(data: Data, stack: Tensor) -> float:
    objective = data.objective(POISSON)
    assert objective is not None  # factors give what zeros cost
    return objective(stack)[0]
