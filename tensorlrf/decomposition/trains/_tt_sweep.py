"""TT-SVD: one sweep of truncated singular value decompositions along the modes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import working_dtype
from tensorlrf.decomposition.linalg._budget import TruncationBudget, within_after_rounding
from tensorlrf.decomposition.linalg._gram import identity, left_singular, scale_of
from tensorlrf.decomposition.trains._tt_ranks import rank_limits
from tensorlrf.factors import Factors
from tensorlrf.factors.algebra import share_norm as share_norm

F = TypeVar("F", bound=Factors)


def train_svd(
    whole: Tensor,
    ranks: Sequence[int] | None,
    budget: TruncationBudget[Tensor] | None,
    *,
    batch_dims: int = 0,
    from_the_left: bool = False,
) -> tuple[list[Tensor], int]:
    """Cores (*batch, r, n_k, r') of trains near `whole` (*batch, n_0, ..., n_{N-1}), of the given
    inner ranks or within `budget`, and which of them carries the norm.

    Cores are taken off either end, from the first mode on unless the other end is far cheaper
    (Oseledets 2011, algorithm 1, from both ends), or as published, `from_the_left`. Those on the
    left are orthonormal as (r n, r'), those on the right as (r, n r').
    """
    batch, sizes = whole.shape[:batch_dims], whole.shape[batch_dims:]
    left: list[Tensor] = []
    right: list[Tensor] = []
    i, j = 0, len(sizes) - 1  # modes that `rest` (*batch, a, n_i, ..., n_j, b) still has
    a = b = 1
    rest = whole
    while i < j:
        rows, columns = a * sizes[i], sizes[j] * b
        size = a * math.prod(sizes[i : j + 1]) * b
        ahead, back = (None, None) if ranks is None else (ranks[i], ranks[j - 1])
        last = i + 1 == j
        turn = rows > columns if last else _from_the_right(rows, columns, size, ahead, back)
        if turn and not from_the_left:
            matrix = rest.reshape(*batch, -1, columns)
            basis, rest = _truncated(matrix, 1, back, budget)
            right.append(basis.mT.reshape(*batch, -1, sizes[j], b))
            j, b = j - 1, int(basis.shape[-1])
        else:
            matrix = rest.reshape(*batch, rows, -1)
            basis, rest = _truncated(matrix, 0, ahead, budget)
            left.append(basis.reshape(*batch, a, sizes[i], -1))
            i, a = i + 1, int(basis.shape[-1])
    return [*left, rest.reshape(*batch, a, sizes[i], b), *reversed(right)], i


def _from_the_right(rows: int, columns: int, n: int, ahead: int | None, back: int | None) -> bool:
    """Whether the last core is to be taken off before the first; left to right is the rule."""
    costs = []
    for side, r in ((rows, ahead), (columns, back)):
        short, long = min(side, n // side), max(side, n // side)
        # The long side's vectors are carried over from the short ones and made orthonormal.
        work = 2 * short * short * long * (1 if side == short else 3) + 20 * short**3
        costs.append(0 if r == side else work + n * (r or short))
    return 2 * costs[1] < costs[0]


def _truncated(
    matrix: Tensor, side: int, r: int | None, budget: TruncationBudget[Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Leading singular vectors of one side of matrices (*batch, rows, columns), and these in their
    coordinates."""
    n = matrix.shape[side - 2]
    if r == n:
        # Nothing is left out, so any basis of this side will do.
        return identity(n, matrix).expand(*matrix.shape[:-2], n, n), matrix
    vectors, energies = left_singular(matrix if side == 0 else matrix.mT)
    if r is None:
        assert budget is not None
        r = budget.choose(energies)
    basis = vectors[..., :r]
    return basis, basis.mT @ matrix if side == 0 else matrix @ basis


def fit_train(
    whole: Tensor,
    ranks: Sequence[int] | None,
    error: float | None,
    build: Callable[[list[Tensor]], F],
    target: Tensor,
    measure: bool = True,
) -> Fit[F]:
    """TT-SVD of `whole` (n_0, ..., n_{N-1}); `build` makes factors of `target` of the cores.

    The error is that of the factors, cast to the dtype of `target`. Without `measure` a fit of
    given ranks does not compute it (NaN).
    """
    work = whole.to(working_dtype(whole.dtype))
    scale = scale_of(work)
    exponent = round(math.log2(scale))
    work = work if scale == 1.0 else work / scale

    def cut(ranks: Sequence[int] | None, budget: TruncationBudget[Tensor] | None = None) -> F:
        cores = share_norm(*train_svd(work, ranks, budget), exponent)
        return build([c.to(target.dtype).contiguous() for c in cores])

    if ranks is not None:
        factors = cut(ranks)
        loss = true_error(factors, target) if measure else math.nan
        return Fit(factors, (loss,), True, f"rank {factors.rank} as asked")

    bound = error or 0.0
    floor = torch.finfo(work.dtype).eps

    def truncated(budget: TruncationBudget[Tensor]) -> tuple[F, float]:
        made = cut(None, budget)
        return made, true_error(made, target)

    aims = max(bound, floor)
    kept, losses = within_after_rounding(truncated, bound, whole.ndim - 1, aims=aims, floor=floor)
    if kept is not None:
        reason = f"rank {kept.rank} keeps the error within {bound}"
        return Fit(kept, tuple(losses), True, reason)
    # Trains of full rank have cores of zeros and ones, and one that holds the numbers as they are.
    factors = cut(rank_limits(tuple(whole.shape)))
    losses.append(true_error(factors, target))
    reason = f"rounding leaves more than {bound} at any rank below the full {factors.rank}"
    return Fit(factors, tuple(losses), losses[-1] <= bound, reason)


def true_error(factors: Factors, target: Tensor) -> float:
    """Relative error of factors as they are, multiplied out in float32 at least."""
    return factors.to(working_dtype(factors.dtype)).rel_error(target)
