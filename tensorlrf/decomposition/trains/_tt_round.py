"""Rounding: a tensor train of smaller ranks, from the train itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition.linalg._budget import TruncationBudget, within_after_rounding
from tensorlrf.decomposition.linalg._gram import thin_svd
from tensorlrf.decomposition.linalg.threads import threaded
from tensorlrf.decomposition.rank import Rank, check_rank_or_error
from tensorlrf.decomposition.trains._tt_algebra import Train, rebuilt, tt_add
from tensorlrf.decomposition.trains._tt_ranks import train_ranks
from tensorlrf.errors import ArgumentError
from tensorlrf.factors import TTFactors, TTMatrix
from tensorlrf.factors.algebra import share_norm
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.factors.kinds import check_format, inner_cores


def tt_round(factors: Train, rank: Rank | None = None, *, error: float | None = None) -> Train:
    """The train with smaller ranks, without the whole.

    A sweep of QR factorisations from the last core to the first, then one of truncated singular
    value decompositions back, in float64: the result is that of TT-SVD on the whole. At the true
    ranks it is exact.

    Parameters
    ----------
    factors : TTFactors or TTMatrix
        Padding of a TT-matrix is rounded with the rest, and does not count in the error.
    rank : int, tuple, float or str, optional
        Most ranks of the result, as for `tt`; where the train has fewer they stay.
    error : float, optional
        Relative error to stay within, shared as by `tt`; where rounding to the dtype of the factors
        is too coarse for it the train is returned as it is.

    Returns
    -------
    TTFactors or TTMatrix
        Of `fit_tt_round` a `Fit` of it with the relative error.

    Raises
    ------
    ArgumentError
        Where `factors` is no train, or not finite.
    RankError
        As `tt` does.

    References
    ----------
    Oseledets 2011, algorithm 2.

    Examples
    --------
    >>> f = tensorlrf.tt(torch.rand(4, 5, 6), 2)
    >>> twice = tensorlrf.decomposition.tt_add(f, f)
    >>> tensorlrf.decomposition.tt_round(twice, error=1e-4).rank == f.rank
    True
    """
    return fit_tt_round(factors, rank, error=error).factors


@without_autocast()
@threaded
def fit_tt_round(
    factors: Train, rank: Rank | None = None, *, error: float | None = None
) -> Fit[Train]:
    """The same as `tt_round`, with its relative error.

    Parameters
    ----------
    factors, rank, error
        As for `tt_round`.

    Returns
    -------
    Fit
        Of a TTFactors or TTMatrix.

    Raises
    ------
    ArgumentError, RankError
        As `tt_round`.

    Examples
    --------
    >>> f = tensorlrf.tt(torch.rand(4, 5, 6), 2)
    >>> tensorlrf.decomposition.fit_tt_round(f, 2).error < 1e-5
    True
    """
    remedy = "pass TTFactors or a TTMatrix, or use tt() for a tensor"
    check_format(factors, (TTFactors, TTMatrix), "factors", remedy)
    rank, error = check_rank_or_error(rank, error, factors.dtype)
    factors = factors.detach()
    for name, core in factors.tensors().items():
        if not bool(core.isfinite().all()):
            raise ArgumentError(f"factors: {name} contains NaN or Inf; find where it came from")
    given = [c.flatten(1, -2).to(torch.float64) for c in factors.cores]
    sizes = [int(c.shape[1]) for c in given]
    ranks = None if rank is None else train_ranks(rank, sizes, math.prod(factors.shape))
    cores, exponent = right_orthogonal(given)

    def cut(ranks: Sequence[int] | None, budget: TruncationBudget[Tensor] | None = None) -> Train:
        swept = share_norm(_truncated(cores, ranks, budget), len(cores) - 1, exponent)
        return rebuilt(factors, [c.to(factors.dtype).contiguous() for c in swept])

    if ranks is not None:
        found = cut(ranks)
        return Fit(found, (distance(factors, found),), True, f"ranks of at most {ranks} as asked")
    bound = error or 0.0

    def truncated(budget: TruncationBudget[Tensor]) -> tuple[Train, float]:
        made = cut(None, budget)
        return made, distance(factors, made)

    kept: Train | None
    losses: list[float]
    kept, losses = within_after_rounding(truncated, bound, max(1, len(cores) - 1), aims=bound)
    if kept is not None:
        reason = f"rank {kept.rank} keeps the error within {bound}"
        return Fit(kept, tuple(losses), True, reason)
    reason = f"rounding leaves more than {bound}, so the train is as it was"
    return Fit(factors, (*losses, 0.0), True, reason)


def right_orthogonal(cores: Sequence[Tensor]) -> tuple[list[Tensor], int]:
    """The same train with all cores but the first orthonormal as (r, n r'), and an exponent of
    two that the first is to be multiplied by."""
    cores, exponent = list(cores), 0
    for k in range(len(cores) - 1, -1, -1):
        # A product of many cores may leave the range of float64 where the whole does not.
        shift = _exponent(cores[k])
        core = cores[k] * 2.0**-shift
        exponent += shift
        if k > 0:
            basis, upper = torch.linalg.qr(core.reshape(core.shape[0], -1).T)
            core = basis.T.reshape(-1, *core.shape[1:])
            cores[k - 1] = cores[k - 1] @ upper.T
        cores[k] = core
    return cores, exponent


def distance(first: Train, second: Train) -> float:
    """||first - second|| / ||first||, or ||second|| where first is zero; by QR factorisations,
    since a difference of inner products would cancel."""
    first, second = first.to(torch.float64), second.to(torch.float64)
    signed = rebuilt(second, [*second.cores[:-1], -second.cores[-1]])
    norm, above = norm_of(inner_cores(first))
    left, shift = norm_of(inner_cores(tt_add(first, signed)))
    return left / norm * 2.0 ** (shift - above) if norm > 0 else math.ldexp(left, shift)


def norm_of(cores: Sequence[Tensor]) -> tuple[float, int]:
    cores, exponent = right_orthogonal(cores)
    return float(torch.linalg.vector_norm(cores[0])), exponent


def _truncated(
    cores: Sequence[Tensor],
    ranks: Sequence[int] | None,
    budget: TruncationBudget[Tensor] | None,
) -> list[Tensor]:
    """From right-orthogonal cores: singular values cut off bond by bond, the norm in the last."""
    cores = list(cores)
    for k in range(len(cores) - 1):
        r, n, _ = cores[k].shape
        left, values, right = thin_svd(cores[k].reshape(r * n, -1))
        if ranks is not None:
            s = min(ranks[k], len(values))
        else:
            assert budget is not None
            s = budget.choose(values**2)
        cores[k] = left[:, :s].reshape(r, n, s)
        cores[k + 1] = torch.tensordot(values[:s, None] * right[:s], cores[k + 1], 1)
    return cores


def _exponent(tensor: Tensor) -> int:
    largest = float(tensor.abs().max())
    return math.frexp(largest)[1] if largest > 0 else 0
