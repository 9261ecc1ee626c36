"""A matrix of low rank whose two factors are in few bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import check_iteration
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import as_tensor
from tensorlrf.decomposition._options import check_callback, check_count, check_moments
from tensorlrf.decomposition._search import search
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.config import Method, config, linear_only
from tensorlrf.decomposition.ladder import Rung
from tensorlrf.decomposition.linalg._solve import cholesky
from tensorlrf.decomposition.linalg.parts._alternate import Callback, by_turns, served
from tensorlrf.decomposition.linalg.parts._coded import Coded, Coder, low_rank
from tensorlrf.decomposition.linalg.parts._nearest import nearest
from tensorlrf.decomposition.methods import factors_of, method
from tensorlrf.decomposition.rank import Rank, check_rank_or_error, rank_of_size
from tensorlrf.factors import Quantized
from tensorlrf.factors.leaves.codes import blocks_of, bytes_of, check_codes

SWEEPS = 30
"""At most, by default."""

State = tuple[Coded, Coded]


@method(
    "lplr",
    gives=Quantized,
    on={"tensor", "linear"},
    law="never worse than both factors of the SVD rounded",
    measured="formats_by_bytes",
)
def fit_lplr(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    codes: str = "int8",
    group: int | None = None,
    gram: Any = None,
    mean: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
    callback: Callback | None = None,
) -> Fit[Quantized]:
    """A product of two matrices in few bits (low-precision low rank, LPLR).

    The left factor of the truncated SVD is brought into codes, and the right one is solved for what
    these are, W R = argmin ‖W - L R‖, before it is coded itself: so that it makes good what the
    first one lost. Then both take turns. A sweep that raises the loss is undone, and the result is
    never worse than both factors of the SVD rounded.

    Parameters
    ----------
    tensor : Tensor or array of shape (m, ...)
        Seen as a matrix (m, n).
    rank : int, float or str, optional
        An int; a share of the bytes of the weight in (0, 1], an upper bound, down to rank one, or
        "same"; or instead
    error : float, optional
        The smallest rank whose relative error is at most this.
    codes : {"int8", "int4", "fp8"}
        Of both factors.
    group : int, optional
        How many numbers have one scale, along the m of the left and the n of the right factor, both
        of which it must divide; by default each column and row has one.
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

    Returns
    -------
    Quantized
        Of a LowRank. Of `fit_lplr` a `Fit` with the relative errors.

    Raises
    ------
    RankError
        For a rank below one or above min(m, n).
    ArgumentError
        For what cannot be decomposed, unknown codes, and a group that does not divide.

    References
    ----------
    Saha, Srivastava & Pilanci 2023, "Matrix compression via randomized low rank and low precision
    factorization", algorithm 1, with the SVD in place of a sketch.

    Examples
    --------
    >>> w = torch.rand(32, 4) @ torch.rand(4, 48)
    >>> f = tensorlrf.lplr(w, 4)
    >>> f.rel_error(w) < 0.01, f.n_bytes < tensorlrf.svd(w, 4).n_bytes / 3
    (True, True)
    """
    checked = as_tensor(tensor)
    rank, error = check_rank_or_error(rank, error, checked.dtype)
    check_codes(codes)
    check_iteration(n_iter_max, tol)
    check_moments(gram, mean)
    check_callback(callback, gram)
    target: Target[Quantized] = Target.of(checked, gram, mean)
    problem = _Problem(target, tuple(checked.shape), codes, group, tol, n_iter_max or SWEEPS)
    m, n = target.shape
    for name, length in (("left", m), ("right", n)):
        blocks_of((length, 1), group, name)
    r = None
    if rank is not None:
        size = checked.element_size()
        r = rank_of_size(
            rank, m, n, m * n * size, lambda r: bytes_at(r, (m, n), codes, group, size)
        )
    return search(lambda r: problem.cut(r, callback), r, error, min(m, n), target.dtype)


lplr = factors_of(fit_lplr)


@config("lplr")
class LPLR(Method):
    """A low rank whose factors are in few bits, as a method of `compress`.

    Codes count as parameters, so that ranks under `keep_params=` are about those of `SVD`, at a
    quarter of the bytes or fewer; `keep_bytes=` counts codes and scales. Linear layers only.

    Examples
    --------
    >>> print(tensorlrf.LPLR(codes="int4"))
    lplr(codes=int4)
    """

    codes: str
    group: int | None
    n_iter_max: int | None
    tol: float | None

    def check_options(self) -> None:
        check_iteration(self.n_iter_max, self.tol)
        check_codes(self.codes)
        if self.group is not None:
            check_count("group", self.group, 1)

    def params_at(self, rank: Any, shape: tuple[int, ...]) -> int:
        scales = sum(1 if self.group is None else n // self.group for n in shape)
        return int(rank * (sum(shape) + scales))

    def why_not(self, shape: tuple[int, ...], groups: int) -> str:
        if self.group is not None and any(n % self.group for n in shape):
            return f"group={self.group} does not divide both of its sides {shape}"
        return linear_only(self.word, shape)

    def bytes_at(self, rung: Rung, shape: tuple[int, ...], size: int) -> int:
        assert isinstance(rung.rank, int)
        return bytes_at(rung.rank, (shape[0], shape[1]), self.codes, self.group, size)


def bytes_at(r: int, shape: tuple[int, int], codes: str, group: int | None, size: int) -> int:
    """Of both factors of rank r with scales of `size` bytes."""
    sides = (shape[0], r), (r, shape[1])
    return sum(bytes_of(s, codes, blocks_of(s, group, "a factor"), size) for s in sides)


class _Problem:
    """Two coded factors of a target."""

    def __init__(
        self,
        target: Target[Quantized],
        shape: tuple[int, ...],
        codes: str,
        group: int | None,
        tol: float | None,
        n_iter_max: int,
    ) -> None:
        self.target, self.shape, self.codes = target, shape, codes
        self.coder = Coder.of_sides(target, codes, group)
        self.tol, self.n_iter_max = tol, n_iter_max

    def cut(self, r: int, callback: Callback | None) -> Fit[Quantized]:
        fit = served(self.target, lambda target, watch: self._fit(target, r, watch), callback)
        return replace(fit, reason=f"rank {r}, {fit.reason}")

    def _fit(self, target: Target[Quantized], r: int, callback: Callback | None) -> Fit[Quantized]:
        left, right = nearest(target, target.work, r)
        first = self._code(left, "left")
        rounded = first, self._code(right, "right")
        solved = first, self._right(target, first)
        starts = [(state, self._error(target, state)) for state in (solved, rounded)]

        def sweep(state: State) -> tuple[State, float]:
            left = self._left(target, state[1])
            moved = left, self._right(target, left)
            return moved, self._error(target, moved)

        return by_turns(starts, sweep, self._pack, self.tol, self.n_iter_max, callback)

    def _left(self, target: Target[Quantized], right: Coded) -> Coded:
        """The best left factor for a right one, W G R^T (R G R^T)^-1, coded."""
        wide = right.value.to(torch.float64)
        square = target.by_columns(wide) @ wide.T
        solved = torch.cholesky_solve((target.image @ wide.T).T, cholesky(square)).T
        return self._code(solved, "left")

    def _right(self, target: Target[Quantized], left: Coded) -> Coded:
        """The best right factor for a left one, (L^T L)^-1 L^T W in any metric of the inputs."""
        wide = left.value.to(torch.float64)
        solved = torch.cholesky_solve(target.source.contract(wide, 0), cholesky(wide.T @ wide))
        return self._code(solved, "right")

    def _code(self, side: Tensor, name: str) -> Coded:
        return self.coder.code(side.to(self.target.work.dtype), name)

    def _error(self, target: Target[Quantized], state: State) -> float:
        left, right = (side.value.to(torch.float64) for side in state)
        return target.rel_error_of(left, right)

    def _pack(self, state: State) -> Quantized:
        return low_rank(*state, self.codes, self.shape)
