"""A matrix in few bits and one of low rank that makes good what rounding loses."""

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
from tensorlrf.decomposition.linalg.parts._alternate import Callback, by_turns, served
from tensorlrf.decomposition.linalg.parts._coded import Coded, Coder, matrix_of
from tensorlrf.decomposition.linalg.parts._nearest import factors_of_sides, nearest
from tensorlrf.decomposition.methods import factors_of, method
from tensorlrf.decomposition.rank import Rank, check_rank_or_error, rank_of_size
from tensorlrf.errors import RankError
from tensorlrf.factors import Composite
from tensorlrf.factors.leaves.codes import blocks_of, bytes_of, check_codes

SWEEPS = 20
"""At most, by default."""

GROUP = 64
"""Inputs that have one scale, by default the most that divide them up to so many."""

State = tuple[Coded, Sides]


@method(
    "low_rank_plus_quantized",
    gives=Composite,
    on={"tensor", "linear"},
    law="no turn raises the loss",
    measured="formats_by_bytes",
)
def fit_low_rank_plus_quantized(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    codes: str = "int4",
    group: int | None = None,
    gram: Any = None,
    mean: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
    callback: Callback | None = None,
) -> Fit[Composite]:
    """A weight in few bits, and a low rank for what that loses (as LQ-LoRA begins).

    By turns Q is W - L in codes, and L the best matrix of rank r for W - Q. A sweep that raises the
    loss is undone, and the result is never worse than W in codes with the low rank of its error.

    Parameters
    ----------
    tensor : Tensor or array of shape (m, ...)
        Seen as a matrix W (m, n).
    rank : int, float or str, optional
        Of the low rank an int; a share of the bytes of the weight in (0, 1] for both parts, or
        "same"; or instead
    error : float, optional
        The smallest rank whose relative error is at most this.
    codes : {"int8", "int4", "fp8"}
        Of the quantised part.
    group : int, optional
        How many inputs have one scale, which must divide n; by default the most up to 64 that do.
    gram : Tensor or array of shape (n, n), optional
        Second moments X X^T / N of the inputs of the layer: errors are then relative errors of the
        outputs. What the inputs do not span follows the plain fit (`Fit.shrinkage`), than which the
        result is never worse in that metric.
    mean : Tensor or array of shape (n,), optional
        The mean of the same inputs, with `gram`: the outputs about their mean.
    n_iter_max : int, optional
        Most sweeps, 20 by default.
    tol : float, optional
        Stops when a sweep lowers the error by no more than this share of it; by default when more
        would gain little.
    callback : callable, optional
        Called as callback(factors, error) after each sweep; returning True ends them, and the best
        so far is the result. Without `gram`.

    Returns
    -------
    Composite
        Of a LowRank and a Quantized. Of `fit_low_rank_plus_quantized` a `Fit` with the relative
        errors.

    Raises
    ------
    RankError
        For a rank below one or above min(m, n), and a share that the quantised part alone exceeds.
    ArgumentError
        For what cannot be decomposed, unknown codes, and a group that does not divide.

    References
    ----------
    Guo, Greengard, Xing & Kim 2023, "LQ-LoRA", algorithm 1.

    Examples
    --------
    >>> w = torch.rand(32, 3) @ torch.rand(3, 48) + 0.1 * torch.rand(32, 48)
    >>> f, q = tensorlrf.low_rank_plus_quantized(w, 3), tensorlrf.Quantized.encode(w, "int4")
    >>> f.rel_error(w) < 0.2 * q.rel_error(w)
    True
    """
    checked = as_tensor(tensor)
    rank, error = check_rank_or_error(rank, error, checked.dtype)
    check_codes(codes)
    check_iteration(n_iter_max, tol)
    check_moments(gram, mean)
    check_callback(callback, gram)
    target: Target[Composite] = Target.of(checked, gram, mean)
    m, n = target.shape
    group = usual_group(n) if group is None else group
    blocks_of((m, n), group, "the weight", by_rows=True)
    r, size = None, checked.element_size()
    if rank is not None:
        coded = bytes_of((m, n), codes, (m, n // group), size)
        dense = m * n * size
        r = rank_of_size(rank, m, n, dense, lambda r: coded + r * (m + n) * size)
        if isinstance(rank, float) and coded + (m + n) * size > rank * dense:
            raise RankError(
                f"rank={rank!r} is a share below that of the weight in {codes} and rank one, "
                f"{(coded + (m + n) * size) / dense:.3g} of its bytes; give more, or fewer bits"
            )
    problem = _Problem(target, tuple(checked.shape), codes, group, tol, n_iter_max or SWEEPS)
    return search(lambda r: problem.cut(r, callback), r, error, min(m, n), target.dtype)


low_rank_plus_quantized = factors_of(fit_low_rank_plus_quantized)


def usual_group(n: int) -> int:
    """The largest divisor of n up to `GROUP`."""
    return max(d for d in range(1, min(n, GROUP) + 1) if n % d == 0)


class _Problem:
    """Both parts for a target."""

    def __init__(
        self,
        target: Target[Composite],
        shape: tuple[int, ...],
        codes: str,
        group: int,
        tol: float | None,
        n_iter_max: int,
    ) -> None:
        self.target, self.shape, self.codes = target, shape, codes
        self.coder = Coder.of_weight(target, codes, group)
        self.tol, self.n_iter_max = tol, n_iter_max

    def cut(self, r: int, callback: Callback | None) -> Fit[Composite]:
        fit = served(self.target, lambda target, watch: self._fit(target, r, watch), callback)
        return replace(fit, reason=f"rank {r}, {fit.reason}")

    def _fit(self, target: Target[Composite], r: int, callback: Callback | None) -> Fit[Composite]:
        work = target.work

        def from_rest(rest: Tensor) -> tuple[State, float]:
            coded = self.coder.code(rest, "the weight", by_rows=True)
            left, right = nearest(target, work - coded.value, r)
            gone = (coded.value + left @ right).to(torch.float64)
            return (coded, (left, right)), target.rel_error(target.matrix - gone)

        def sweep(state: State) -> tuple[State, float]:
            left, right = state[1]
            return from_rest(work - left @ right)

        left, right = nearest(target, work, r)
        starts = [from_rest(matrix) for matrix in (work - left @ right, work)]
        return by_turns(starts, sweep, self._pack, self.tol, self.n_iter_max, callback)

    def _pack(self, state: State) -> Composite:
        coded, sides = state
        low = factors_of_sides(self.target, sides, self.shape)
        return Composite((low, matrix_of(coded, self.codes, self.shape)))
