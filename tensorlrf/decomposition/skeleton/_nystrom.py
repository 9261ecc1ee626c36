"""Nystrom approximation of positive semidefinite matrices, by some of their columns."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import as_tensor
from tensorlrf.decomposition._search import search
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.linalg._spectrum import whole_spectrum
from tensorlrf.decomposition.linalg._truncation import SEED
from tensorlrf.decomposition.methods import factors_of, method
from tensorlrf.decomposition.random_state import generator
from tensorlrf.decomposition.rank import Rank, _share, check_rank_or_error, matrix_rank, whole
from tensorlrf.decomposition.second_moments import _negative
from tensorlrf.errors import ArgumentError, ShapeError, unknown
from tensorlrf.factors import Skeleton
from tensorlrf.factors.arrays import PLACES

SAMPLINGS = ("rpcholesky", "greedy", "leverage", "uniform")

CHECKED = 2048
"""Sides up to which it is asked of the whole matrix whether it is positive semidefinite."""

FIRST = 32
"""Columns for which there is room at first."""

_BLOCK = 1 << 20


@method(
    "nystrom",
    gives=Skeleton,
    on={"tensor"},
    order=(32, 32),
    law="0 <= N <= A in the order of semidefinite matrices",
)
def fit_nystrom(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    sampling: str = "rpcholesky",
    random_state: int | torch.Generator | None = None,
    measure: bool = True,
) -> Fit[Skeleton]:
    """A positive semidefinite matrix by some of its columns, never above it.

    Of A (n, n) the columns S give N = A[:, S] A[S, S]^+ A[S, :], the largest matrix of their span
    with 0 <= N <= A. It is found as F F^T by a Cholesky factorisation that stops early, of which
    only these columns and the diagonal are read.

    Parameters
    ----------
    tensor : Tensor or array of shape (n, n)
        Symmetric and positive semidefinite, such as a kernel or second moments.
    rank : int, float or str, optional
        How many columns; a share of the parameters in (0, 1], which are r (n + 1) (an upper bound,
        down to rank one), or "same"; or instead
    error : float, optional
        A rank whose relative error is at most this, where one less, or less by as much as the ranks
        tried lay apart, was not enough.
    sampling : {"rpcholesky", "greedy", "leverage", "uniform"}
        How columns are chosen: "rpcholesky", one after the other, each drawn by the diagonal of
        what the others leave; "greedy", where that is largest; "leverage", drawn by their shares in
        the leading eigenvectors, which takes these; "uniform".
    random_state : int or Generator, optional
        Of all but "greedy".

    Returns
    -------
    Skeleton
        F as `columns`, without core and rows, and `column_indices` S. Of `fit_nystrom` a `Fit` with
        the relative error.

    Raises
    ------
    ArgumentError
        Where the matrix is not symmetric, or not positive semidefinite, with the number that shows
        it; and for what cannot be decomposed. Beyond 2048 rows definiteness is asked of the
        diagonal, at first and as columns are taken out, and not of the whole.
    ShapeError
        For what is not square.
    RankError
        For a rank below one or above n.

    Warns
    -----
    TensorlrfWarning
        Where rounding keeps `error` out of reach.

    Notes
    -----
    For "rpcholesky" the expected trace of A - N is at most 1 + eps times the least of rank k once
    about k / eps + k log(1 / (eps eta)) columns are drawn, with eta the share of the trace that
    rank k leaves (theorem 3.1 of the paper).

    References
    ----------
    Williams & Seeger 2001; Drineas & Mahoney 2005; Chen, Epperly, Tropp & Webber 2022 (randomly
    pivoted Cholesky).

    Examples
    --------
    >>> x = torch.linspace(0, 1, 50, dtype=torch.float64)
    >>> kernel = torch.exp(-((x[:, None] - x) ** 2))
    >>> f = tensorlrf.nystrom(kernel, error=1e-6, random_state=0)
    >>> f.rank < 10, f.columns.shape[0]
    (True, 50)
    """
    checked = as_tensor(tensor).detach()
    rank, error = check_rank_or_error(rank, error, checked.dtype)
    if sampling not in SAMPLINGS:
        raise unknown("sampling", sampling, SAMPLINGS)
    _check_square(checked)
    target: Target[Skeleton] = Target.of(checked)
    work, n = target.work, target.shape[0]
    _check_symmetric(work, target)
    r = None if rank is None else nystrom_rank(rank, n)
    if random_state is None and sampling == "greedy":
        random_state = SEED
    draws = generator(random_state, checked.device)
    columns = Columns(target, sampling, draws)

    def cut(r: int) -> Fit[Skeleton]:
        chosen, factor = columns.cut(r)
        side = (factor * target.root).to(target.dtype).contiguous()
        factors = Skeleton(side, column_indices=chosen.to(PLACES))
        known = measure or rank is None
        lost = target.error(factors) if known else math.nan
        return Fit(factors, (lost,), True, f"{r} columns by {sampling}")

    return search(cut, r, error, n, target.dtype)


nystrom = factors_of(fit_nystrom)


def nystrom_rank(rank: Rank, n: int) -> int:
    """How many columns: a share counts r (n + 1) numbers."""
    share = _share(rank)
    return (
        matrix_rank(rank, n, n) if share is None else max(1, min(n, whole(share * n * n / (n + 1))))
    )


class Columns:
    """A partial Cholesky factorisation A[S, S] = F[S] F[S]^T, column by column."""

    def __init__(self, target: Target[Skeleton], sampling: str, draws: torch.Generator) -> None:
        self.target, self.sampling, self.draws = target, sampling, draws
        self._begin()

    def _begin(self) -> None:
        work = self.target.work
        self.left = work.diagonal().to(torch.float64).clone()  # of what is left
        self.chosen: list[int] = []
        self._turned = self.left.new_zeros(min(FIRST, len(work)), len(work))  # F^T
        whole = float(self.left.clamp(min=0.0).sum())
        self.slack = 8 * float(torch.finfo(self.target.dtype).eps) * whole
        self._refuse_negative()
        # A pivot divides the rounding of its column by its root: with pivots above so much of the
        # whole, what is taken off the diagonal is known to the root of float64's rounding.
        self.floor = 64 * float(torch.finfo(torch.float64).eps) * whole
        self.slack = max(self.slack, float(torch.finfo(torch.float64).eps) ** 0.5 * whole)
        self._waiting: list[int] | None = None
        if self.sampling == "uniform":
            order = torch.randperm(len(work), generator=self.draws, device=work.device)
            self._waiting = order.tolist()

    def cut(self, r: int) -> tuple[Tensor, Tensor]:
        """The first r columns, (r,), and F (n, r)."""
        if self.sampling == "leverage":
            self._begin()
            self._waiting = self._by_leverage(r)
        while len(self.chosen) < r:
            self._step()
        return torch.tensor(self.chosen[:r], device=self.left.device), self._turned[:r].T

    def _step(self) -> None:
        """One more column; a dependent one adds nothing."""
        k, j, work = len(self.chosen), self._next(), self.target.work
        column = (work[:, j] + work[j]).to(torch.float64) / 2
        column -= self._turned[:k].T @ self._turned[:k, j]
        pivot = float(column[j])
        dependent = not pivot > self.floor
        side = torch.zeros_like(column) if dependent else column / math.sqrt(pivot)
        side[self.chosen] = 0.0
        if k == len(self._turned):
            more = self._turned.new_zeros(min(k, len(work) - k), len(work))
            self._turned = torch.cat([self._turned, more])
        self._turned[k] = side
        self.chosen.append(j)
        self.left -= side.square()
        self._refuse_negative()
        self.left[self.chosen] = 0.0

    def _next(self) -> int:
        if self._waiting is not None:
            return self._waiting[len(self.chosen)]
        scores = self.left.clamp(min=0.0)
        if not float(scores.max()) > self.floor:
            free = torch.ones_like(scores)
            free[self.chosen] = 0.0
            return int(free.argmax())
        if self.sampling == "greedy":
            return int(scores.argmax())
        return int((scores / scores.max()).multinomial(1, generator=self.draws))

    @cached_property
    def _spectrum(self) -> Any:
        return whole_spectrum(self.target.work)

    def _by_leverage(self, r: int) -> list[int]:
        """r columns drawn without replacement by their shares in r leading eigenvectors."""
        basis = torch.linalg.qr(self._spectrum.split(r)[0].to(torch.float64))[0]
        scores = basis.square().sum(1).clamp(min=1e-290)
        drawn: list[int] = scores.multinomial(r, generator=self.draws).tolist()
        return drawn

    def _refuse_negative(self) -> None:
        least, at = (float(found) for found in self.left.min(0))
        if least < -self.slack:
            behind = f"without {len(self.chosen)} columns " if self.chosen else ""
            raise ArgumentError(
                f"tensor is not positive semidefinite: {behind}its diagonal has "
                f"{least * self.target.scale:.3g} at {int(at)}; nystrom serves kernels and second "
                "moments, use interpolative or svd for others"
            )


def _check_square(tensor: Tensor) -> None:
    if tensor.ndim != 2 or tensor.shape[0] != tensor.shape[1]:
        raise ShapeError(
            f"tensor has shape {tuple(tensor.shape)}; nystrom takes a square matrix (n, n), use "
            "interpolative or cur for others"
        )


def _check_symmetric(work: Tensor, target: Target[Any]) -> None:
    """Raise ArgumentError, with the number, where a matrix is not symmetric or not positive
    semidefinite."""
    eps = float(torch.finfo(target.dtype).eps)
    largest = float(work.abs().max())
    skew, at = 0.0, (0, 0)
    rows = max(1, _BLOCK // len(work))
    for first in range(0, len(work), rows):
        apart = (work[first : first + rows] - work[:, first : first + rows].T).abs()
        worst = int(apart.argmax())
        if float(apart.flatten()[worst]) > skew:
            skew = float(apart.flatten()[worst])
            at = first + worst // len(work), worst % len(work)
    if skew > eps**0.5 * largest:
        raise ArgumentError(
            f"tensor is not symmetric: [{at[0]}, {at[1]}] and [{at[1]}, {at[0]}] differ by "
            f"{skew * target.scale:.3g}; pass (A + A.T) / 2 where that is meant"
        )
    if len(work) <= CHECKED:
        wide = work.to(torch.float64)
        wide = (wide + wide.T) / 2
        slack = (8 * eps + eps**0.5 * (skew > 0)) * float(wide.diagonal().clamp(min=0).sum())
        if (least := _negative(wide, slack)) is not None:
            raise ArgumentError(
                f"tensor is not positive semidefinite: its most negative eigenvalue is "
                f"{least * target.scale:.3g}; nystrom serves kernels and second moments, use "
                "interpolative or svd for others"
            )
