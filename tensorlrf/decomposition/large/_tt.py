"""Tensor trains of tensors that do not fit into memory, or lie with several ranks.

Every mode but the divided one is peeled off an end of the train, as in TT-SVD (Oseledets 2011,
algorithm 1): the side of the unfolding that every piece has whole gives a core, by a Gram summed
over the pieces, and pieces are contracted with it from then on. What is left of them is held as
soon as there is room; the divided mode is what is left at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition.large._divided import Reading, divided
from tensorlrf.decomposition.large._entered import entered
from tensorlrf.decomposition.large._fit import LargeFit
from tensorlrf.decomposition.large._look import look
from tensorlrf.decomposition.large._memory import Need, check_room, rows_within
from tensorlrf.decomposition.large._residual import rel_error
from tensorlrf.decomposition.large._sides import WholeSide
from tensorlrf.decomposition.linalg._budget import TruncationBudget, within_after_rounding
from tensorlrf.decomposition.linalg._gram import complete, identity
from tensorlrf.decomposition.methods import factors_of
from tensorlrf.decomposition.rank import Rank, check_rank_or_error
from tensorlrf.decomposition.trains._tt_ranks import rank_limits, train_ranks
from tensorlrf.decomposition.trains._tt_sweep import share_norm
from tensorlrf.factors import TTFactors
from tensorlrf.factors.algebra import chain_product


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
        See `Slabs`; "1GB" by default. There has to be room for Grams of the sides, (n_k r)^2.

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
    for each core but that of the divided mode, r its rank towards its end (for float64 an R factor
    to each other rank), and the rows of that one, to gather them.

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
    reading.together(_Peel(reading, ranks).check)
    norm = look(reading)

    def cut(budget: TruncationBudget[Tensor] | None) -> TTFactors:
        peel = _Peel(reading, ranks, budget)
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


class _Peel:
    """A train that is taken apart from its ends towards the divided mode.

    head, tail  bases of the modes peeled off either end, (a n, r) and (n b, r) held        what is
    left of the pieces of this process, (before, rows, behind), once there is room
    """

    def __init__(
        self,
        reading: Reading,
        ranks: tuple[int, ...] | None,
        budget: TruncationBudget[Tensor] | None = None,
    ) -> None:
        self.reading, self.ranks, self.budget = reading, ranks, budget
        self.sizes, self.along = reading.tensor.shape, reading.tensor.along
        self.axes = tuple(range(len(self.sizes)))
        self.head: list[Tensor] = []
        self.tail: list[Tensor] = []
        self.held: Tensor | None = None

    def cores(self) -> tuple[list[Tensor], int]:
        """All of them, and which one has the norm."""
        for mode in range(len(self.sizes) - 1, self.along, -1):
            self.tail.append(
                self._basis(mode, self._width(self.tail) * self.sizes[mode], behind=True)
            )
        for mode in range(self.along):
            self.head.append(
                self._basis(mode, self._width(self.head) * self.sizes[mode], behind=False)
            )
        left = [
            basis.reshape(-1, n, basis.shape[1])
            for basis, n in zip(self.head, self.sizes, strict=False)
        ]
        right = [
            basis.T.reshape(basis.shape[1], n, -1)
            for basis, n in zip(self.tail, reversed(self.sizes), strict=False)
        ]
        rest = self._gathered().transpose(0, 1).contiguous()  # (rows, a, b)
        middle = torch.cat(self.reading.group.rows(rest)).transpose(0, 1)
        return [*left, middle, *reversed(right)], self.along

    def check(self) -> None:
        """ArgumentError where there is no room for one of the modes; of the first alone, where
        ranks are as yet unknown. It peels nothing but shapes."""
        needs = [self._need]
        modes = [*range(len(self.sizes) - 1, self.along, -1), *range(self.along)]
        for mode in modes if self.ranks else ():
            behind = mode > self.along
            bases = self.tail if behind else self.head
            side = self.sizes[mode] * self._width(bases)
            r = self.ranks[mode - 1 if behind else mode] if self.ranks else side
            bases.append(torch.empty(side, r, dtype=self.reading.dtype, device="meta"))
            needs.append(self._need)
        what = f"tt of rank {(1, *self.ranks, 1)}" if self.ranks else "tt"
        check_room(what, self.reading.limit, needs, self.along)

    @property
    def _need(self) -> Need:
        """For the mode that is next."""
        reading = self.reading
        behind = len(self.sizes) - 1 - len(self.tail)
        if behind > self.along:
            side = self.sizes[behind] * self._width(self.tail)
        elif len(self.head) < self.along:
            side = self.sizes[len(self.head)] * self._width(self.head)
        else:
            side = 0
        known = sum(basis.numel() for basis in (*self.head, *self.tail)) * reading.dtype.itemsize
        before, after = self._left()
        if side == 0:
            known += 3 * before * reading.most * after * reading.dtype.itemsize
        return Need(WholeSide.held(side) + known, self._each)

    @property
    def _each(self) -> int:
        """Bytes for a row of a piece: as it is read, contracted, and added."""
        reading = self.reading
        contracted = 2 * reading.row * reading.dtype.itemsize if self.head or self.tail else 0
        return reading.row_bytes(self.axes) + contracted + WholeSide.each(reading)

    def _width(self, bases: list[Tensor]) -> int:
        return int(bases[-1].shape[1]) if bases else 1

    def _left(self) -> tuple[int, int]:
        """Numbers before and behind the divided mode that a row of what is left has."""
        before = math.prod(self.sizes[len(self.head) : self.along]) * self._width(self.head)
        last = len(self.sizes) - len(self.tail)
        return before, math.prod(self.sizes[self.along + 1 : last]) * self._width(self.tail)

    def _basis(self, mode: int, side: int, *, behind: bool) -> Tensor:
        """The leading vectors (side, r) of the unfolding whose side ends with `mode`."""
        bond = mode - 1 if behind else mode
        r = None if self.ranks is None else self.ranks[bond]
        if r == side:
            basis = identity(
                side, torch.empty(0, dtype=self.reading.dtype, device=self.reading.device)
            )
        else:
            spectrum = WholeSide(side, self.reading)
            for _, rest in self._pieces():
                at = 1 if behind else 0
                many = rest.numel() // side
                spectrum.add(rest.reshape((many, side) if behind else (side, many)), at)
            vectors, energies = spectrum.spectrum()
            if r is None:
                assert self.budget is not None
                r = self.budget.choose(energies)
            basis = complete(vectors[:, :r], r).to(self.reading.dtype)
        if self.held is not None:
            self.held = self._contracted(self.held, basis, behind)
        return basis

    def _pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """What is left of the pieces, (before, rows, behind): held, or by a pass."""
        if self.held is None and (self.head or self.tail) and self._would_fit():
            self.held = self._gathered()
        if self.held is not None:
            if self.held.numel():
                yield slice(0, self.reading.count), self.held
            return
        yield from self._read()

    def _would_fit(self) -> bool:
        """Whether what is left of all pieces here, and a product of it, has room."""
        before, after = self._left()
        reading = self.reading
        size = before * reading.most * after * reading.dtype.itemsize
        side = self.sizes[len(self.sizes) - 1 - len(self.tail)] * self._width(self.tail)
        copies = 6 if reading.dtype == torch.float64 else 3
        return reading.limit >= Need(copies * size + WholeSide.held(side), self._each).least

    def _gathered(self) -> Tensor:
        if self.held is not None:
            return self.held
        before, after = self._left()
        reading = self.reading
        found = torch.empty(
            before, reading.count, after, dtype=reading.dtype, device=reading.device
        )
        for own, rest in self._read():
            found[:, own] = rest
        return found

    def _read(self) -> Iterator[tuple[slice, Tensor]]:
        before = math.prod(self.sizes[: self.along])
        need, reading = self._need, self.reading
        check_room("the next core of tt", reading.limit, [need], self.along)
        rows = rows_within(reading.limit, need, reading.most)
        for own, piece in reading.pieces(rows, self.axes):
            rest = piece.reshape(before, own.stop - own.start, -1)
            for basis in self.tail:
                rest = self._contracted(rest, basis, True)
            for basis in self.head:
                rest = self._contracted(rest, basis, False)
            yield own, rest

    def _contracted(self, rest: Tensor, basis: Tensor, behind: bool) -> Tensor:
        before, rows, after = rest.shape
        n, r = basis.shape
        if behind:
            product = rest.reshape(before * rows * (after // n), n) @ basis
            return product.reshape(before, rows, after // n * r)
        product = basis.T @ rest.reshape(n, before // n * rows * after)
        return product.reshape(before // n * r, rows, after)


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
    each = 3 * (reading.row * reading.dtype.itemsize) + 3 * (reading.row // (apart // r)) * r * unit
    axes = tuple(range(len(sizes)))
    need = Need(3 * unit * (apart + factors.n_params), each + reading.row_bytes(axes))
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
