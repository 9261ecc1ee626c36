"""A matrix of low rank and few entries beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import check_iteration
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import as_tensor
from tensorlrf.decomposition._options import check_callback, check_moments
from tensorlrf.decomposition._search import search
from tensorlrf.decomposition._target import Sides, Target
from tensorlrf.decomposition.config import Method, config, linear_only
from tensorlrf.decomposition.ladder import LayerRank
from tensorlrf.decomposition.linalg.parts._alternate import Callback, by_turns, served
from tensorlrf.decomposition.linalg.parts._nearest import factors_of_sides, nearest
from tensorlrf.decomposition.methods import factors_of, method
from tensorlrf.decomposition.random_state import generator
from tensorlrf.decomposition.rank import Rank, beside, check_rank_or_error
from tensorlrf.decomposition.sums._support import Support, check_support, packed, support_size
from tensorlrf.factors import Composite, Factors

SWEEPS = 30
"""At most, by default."""

State = tuple[Sides, Tensor, Tensor]
"""left and right; the mask (m, n); what is on it (m, n)."""


@method(
    "low_rank_plus_sparse",
    gives=Composite,
    on={"tensor", "linear"},
    law="no turn raises the loss",
    measured="sums: 1000",
)
def fit_low_rank_plus_sparse(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    sparsity: float | None = None,
    pattern: str = "top",
    gram: Any = None,
    mean: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
    callback: Callback | None = None,
    random_state: int | torch.Generator | None = None,
) -> Fit[Composite]:
    """A matrix of rank r and a sparse one: their sum is near.

    By turns the low rank is the best one for W - S, and S has the entries of W - L that count most.
    A sweep that raises the loss is undone.

    Parameters
    ----------
    tensor : Tensor or array of shape (m, ...)
        Seen as a matrix W (m, n).
    rank : int, float or str, optional
        Of the low rank an int; a share of the parameters in (0, 1] for both parts, each entry
        counted as its value and its two coordinates, or "same"; or instead
    error : float, optional
        The smallest rank whose relative error is at most this.
    sparsity : float, optional
        Share of entries that are zero in the sparse part, in (0, 1); 0.95 by default.
    pattern : {"top", "2:4", "random"}
        Which entries are kept: the largest ones, in a metric by what each alone adds to the loss;
        the two largest of each four inputs; or drawn ones, whatever W is, as for training.
    gram : Tensor or array of shape (n, n), optional
        Second moments X X^T / N of the inputs of the layer: errors are then relative errors of the
        outputs. What the inputs do not span follows the plain fit (`Fit.shrinkage`), than which the
        result is never worse in that metric.
    mean : Tensor or array of shape (n,), optional
        The mean of the same inputs, with `gram`: the outputs about their mean.
    n_iter_max : int, optional
        Most sweeps, 30 by default.
    tol : float, optional
        Stops when a sweep lowers the error by no more than this share of it; by default when more
        would gain little.
    callback : callable, optional
        Called as callback(factors, error) after each sweep; returning True ends them, and the best
        so far is the result. Without `gram`.
    random_state : int or Generator, optional
        Of pattern="random".

    Returns
    -------
    Composite
        Of a LowRank and a SparseTensor. Of `fit_low_rank_plus_sparse` a `Fit` with the relative
        errors.

    Raises
    ------
    RankError
        For a rank below one or above min(m, n), and a share that the sparse part alone exceeds.
    ArgumentError
        For what cannot be decomposed, a sparsity outside (0, 1), and an unknown pattern.

    References
    ----------
    Zhou & Tao 2011, "GoDec"; Li et al. 2023, "LoSparse"; Han et al. 2024, "SLTrain", whose support
    is drawn.

    Examples
    --------
    >>> w = torch.randn(32, 2) @ torch.randn(2, 48)
    >>> w.view(-1)[torch.randperm(1536)[:12]] += 9
    >>> f = tensorlrf.low_rank_plus_sparse(w, 2, sparsity=0.99)
    >>> [type(part).__name__ for part in f.parts]
    ['LowRank', 'SparseTensor']
    >>> f.rel_error(w) < 0.1 * tensorlrf.svd(w, 2).rel_error(w)
    True
    """
    checked = as_tensor(tensor)
    rank, error = check_rank_or_error(rank, error, checked.dtype)
    check_iteration(n_iter_max, tol)
    check_moments(gram, mean)
    check_callback(callback, gram)
    draws = generator(random_state, checked.device)
    target: Target[Composite] = Target.of(checked, gram, mean)
    m, n = target.shape
    support = Support.of((m, n), sparsity, pattern, draws)
    problem = _Problem(target, tuple(checked.shape), support, tol, n_iter_max or SWEEPS)
    numbers = support.count * (1 + checked.ndim)
    r = None if rank is None else beside(rank, m, n, numbers, "the sparse part")
    return search(lambda r: problem.cut(r, callback), r, error, min(m, n), target.dtype)


low_rank_plus_sparse = factors_of(fit_low_rank_plus_sparse)


@config("low_rank_plus_sparse")
class LowRankPlusSparse(Method):
    """A low rank, and the entries that count most beside it, as a method of `compress`.

    Each entry counts as its value and its two coordinates, in parameters and bytes. Linear layers
    only.

    Examples
    --------
    >>> print(tensorlrf.LowRankPlusSparse(sparsity=0.98))
    low_rank_plus_sparse(sparsity=0.98)
    """

    sparsity: float | None
    pattern: str
    n_iter_max: int | None
    tol: float | None

    def check_options(self) -> None:
        check_iteration(self.n_iter_max, self.tol)
        check_support(self.sparsity, self.pattern)

    def params_at(self, rank: Any, shape: tuple[int, ...]) -> int:
        m, n = shape
        return int(rank * (m + n) + 3 * support_size((m, n), self.sparsity, self.pattern))

    def rank_of(self, factors: Factors) -> LayerRank:
        assert isinstance(factors.rank, tuple)
        return factors.rank[0]

    def why_not(self, shape: tuple[int, ...], groups: int) -> str:
        if self.pattern == "2:4" and shape[-1] % 4:
            return f"pattern='2:4' needs inputs in fours, and it has {shape[-1]}"
        return linear_only(self.word, shape)


class _Problem:
    """Both parts for a target."""

    def __init__(
        self,
        target: Target[Composite],
        shape: tuple[int, ...],
        support: Support,
        tol: float | None,
        n_iter_max: int,
    ) -> None:
        self.target, self.shape, self.support = target, shape, support
        self.tol, self.n_iter_max = tol, n_iter_max

    def cut(self, r: int, callback: Callback | None) -> Fit[Composite]:
        fit = served(self.target, lambda target, watch: self._fit(target, r, watch), callback)
        many = f"rank {r} and {self.support.count} entries"
        return replace(fit, reason=f"{many}, {fit.reason}")

    def _fit(self, target: Target[Composite], r: int, callback: Callback | None) -> Fit[Composite]:
        work = target.work

        def from_low(left: Tensor, right: Tensor) -> tuple[State, float]:
            low = left @ right
            mask, entries = self.support.fitted(work - low, target)
            rest = target.matrix - low.to(torch.float64) - entries.to(torch.float64)
            return ((left, right), mask, entries), target.rel_error(rest)

        def sweep(state: State) -> tuple[State, float]:
            return from_low(*nearest(target, work - state[2], r))

        alone = self.support.fitted(work, target)[1]
        starts = [from_low(*nearest(target, matrix, r)) for matrix in (work, work - alone)]
        return by_turns(starts, sweep, self._pack, self.tol, self.n_iter_max, callback)

    def _pack(self, state: State) -> Composite:
        sides, mask, entries = state
        low = factors_of_sides(self.target, sides, self.shape)
        held = (entries * self.target.scale).to(self.target.dtype)
        return Composite((low, packed(mask, held, self.shape)))
