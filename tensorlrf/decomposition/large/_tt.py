"""Tensor trains of tensors that do not fit into memory, or lie with several ranks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition.large._divided import Reading, divided
from tensorlrf.decomposition.large._entered import entered
from tensorlrf.decomposition.large._fit import LargeFit
from tensorlrf.decomposition.large._look import look
from tensorlrf.decomposition.large._memory import Need, check_room, rows_within
from tensorlrf.decomposition.large._peel import Peel
from tensorlrf.decomposition.large._residual import rel_error, residual_bytes
from tensorlrf.decomposition.linalg._budget import TruncationBudget, within_after_rounding
from tensorlrf.decomposition.methods import factors_of
from tensorlrf.decomposition.rank import Rank, check_rank_or_error
from tensorlrf.decomposition.trains._tt_ranks import rank_limits, train_ranks
from tensorlrf.factors import TTFactors
from tensorlrf.factors.algebra import chain_product, share_norm


@entered
def fit_tt(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    along: int | None = None,
    memory_limit: int | str | None = None,
    measure: bool = True,
) -> LargeFit[TTFactors]:
    """A tensor train by TT-SVD of a tensor that is read in slabs, or sharded over ranks.

    Modes behind the divided one are peeled off the end of the train, then those in front of it off
    its beginning; the core of the divided mode has the norm, and all others are orthonormal as seen
    from there, up to a power of two.

    Parameters
    ----------
    tensor : Slabs, Sharded, DTensor, path, array or slice
        Of shape (n_0, ..., n_{N-1}); see `Slabs` and `Sharded`.
    rank : int, tuple, float or str, optional
        As of `tensorlrf.tt`, but for "auto"; or instead
    error : float, optional
        Relative error of the whole to stay within: every mode that is peeled off gets an equal part
        of the squared error that is left.
    along : int, optional
        See `Slabs`.
    memory_limit : int or str, optional
        See `Slabs`; "1GB" by default. There has to be room for the Gram of the first side, and from
        then on for what is left, or for the next Gram, (n_k r)^2.

    Returns
    -------
    TTFactors
        Whole, on every rank. Of `fit_tt` a `LargeFit` with the true error.

    Raises
    ------
    ArgumentError, ShapeError, RankError
        As `tensorlrf.tt`; for a limit below what is needed, which is named, and for ranks that do
        not make the same call.

    Warns
    -----
    TensorlrfWarning
        Where rounding to the dtype of `tensor` keeps `error` out of reach.

    Notes
    -----
    Passes: the first look; one for the Gram of each mode until there is room for what is left, and
    one to gather that; one for the error, which `tt` of given ranks leaves out. Usually four: look,
    Gram, gather, error. The squared error is at most N - 1 times that of the best train of these
    ranks (Oseledets 2011, corollary 2.4). With p ranks a rank sends 2 (p - 1) / p 8 (n_k r)^2 bytes
    for each core but that of the divided mode, r its rank towards its end, for float64 an R factor
    of 8 (n_k r)^2 to each other rank; where fewer than n_k r rows are left in all, these instead;
    and the rows of the core of the divided mode, to gather them.

    References
    ----------
    Oseledets 2011, algorithm 1.

    Examples
    --------
    >>> import numpy
    >>> x = numpy.add.outer(numpy.arange(40.0), numpy.add.outer(numpy.arange(30), numpy.arange(20)))
    >>> tensorlrf.large.tt(x, error=1e-6).rank
    (1, 2, 2, 1)
    """
    whole = divided(tensor, along, memory_limit)
    reading = Reading(whole)
    reading.agree("tt", rank=rank, error=error, measure=measure)
    rank, error = check_rank_or_error(rank, error, whole.dtype)
    sizes = whole.shape
    ranks = None if rank is None else train_ranks(rank, sizes, math.prod(sizes))
    reading.together(Peel(reading, ranks).check)
    norm = look(reading)

    def cut(budget: TruncationBudget[Tensor] | None) -> TTFactors:
        peel = Peel(reading, ranks, budget)
        cores, carrier = peel.cores()
        shared = share_norm(cores, carrier, round(math.log2(reading.scale)))
        return TTFactors(tuple(c.to(whole.dtype).contiguous() for c in shared))

    def told(factors: TTFactors, errors: list[float], kept: bool, why: str) -> LargeFit[TTFactors]:
        return LargeFit(
            factors,
            tuple(errors),
            kept,
            why,
            passes=reading.passes,
            bytes_sent=reading.group.bytes_sent,
        )

    if ranks is not None:
        factors = cut(None)
        loss = _true_error(reading, factors, norm) if measure else math.nan
        return told(factors, [loss], True, f"rank {factors.rank} as asked")
    bound, floor = error or 0.0, torch.finfo(reading.dtype).eps

    def truncated(budget: TruncationBudget[Tensor]) -> tuple[TTFactors, float]:
        budget.norm = norm**2
        made = cut(budget)
        return made, _true_error(reading, made, norm)

    aims = max(bound, floor)
    kept, losses = within_after_rounding(truncated, bound, len(sizes) - 1, aims=aims, floor=floor)
    if kept is not None:
        return told(kept, losses, True, f"rank {kept.rank} keeps the error within {bound}")
    ranks = rank_limits(sizes)
    factors = cut(None)
    losses.append(_true_error(reading, factors, norm))
    reason = f"rounding leaves more than {bound} at any rank below the full {factors.rank}"
    return told(factors, losses, losses[-1] <= bound, reason)


tt = factors_of(fit_tt)


def _true_error(reading: Reading, factors: TTFactors, norm: float) -> float:
    """Of factors as they are; one pass."""
    along, sizes = reading.tensor.along, reading.tensor.shape
    cores = [c.to(reading.dtype) for c in factors.cores]
    cores[along] = cores[along] / reading.scale
    cut = _cut(sizes, factors.rank, along)
    front, back = cores[:cut], cores[cut:]
    within = front if along < cut else back
    at = along if along < cut else along - cut
    # The part without the divided mode is multiplied out once.
    known = chain_product(back if along < cut else front)
    start = reading.tensor.own.start

    def rebuilt(own: slice) -> Tensor:
        some = list(within)
        some[at] = some[at][:, start + own.start : start + own.stop]
        part = chain_product(some)
        pair = (part, known) if along < cut else (known, part)
        whole = pair[0].reshape(-1, factors.rank[cut]) @ pair[1].reshape(factors.rank[cut], -1)
        shape = (*sizes[:along], own.stop - own.start, *sizes[along + 1 :])
        return whole.reshape(shape)

    r, unit = factors.rank[cut], reading.dtype.itemsize
    apart = math.prod(sizes[cut:] if along < cut else sizes[:cut]) * r
    axes = tuple(range(len(sizes)))
    part = max(1, residual_bytes(reading) // max(1, apart // r))  # of a block, multiplied out
    held = 3 * unit * (apart + factors.n_params) + residual_bytes(reading) + 3 * part * r
    need = Need(held, reading.row_bytes(axes))
    check_room("the error of tt", reading.limit, [need], along)
    rows = rows_within(reading.limit, need, reading.most)
    return rel_error(reading, norm, rows, rebuilt, axes)


def _cut(sizes: tuple[int, ...], ranks: tuple[int, ...], along: int) -> int:
    """The bond at which both parts of a train are smallest, of the divided mode one row."""
    one = [1 if k == along else n for k, n in enumerate(sizes)]
    return min(
        range(1, len(sizes)),
        key=lambda k: (math.prod(one[:k]) + math.prod(one[k:])) * ranks[k],
    )
