"""A train that is taken apart from its ends towards the divided mode.

Every mode but the divided one is peeled off an end of the train, as in TT-SVD (Oseledets 2011,
algorithm 1): the side of the unfolding that every piece has whole gives a core, by a Gram summed
over the pieces, and pieces are contracted with it from then on. What is left of them is held as
soon as there is room; the divided mode is what is left at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from tensorlrf.decomposition.large._divided import Reading
from tensorlrf.decomposition.large._memory import Need, check_room, rows_within
from tensorlrf.decomposition.large._sides import WholeSide, divided_svd
from tensorlrf.decomposition.linalg._budget import TruncationBudget
from tensorlrf.decomposition.linalg._gram import complete, identity


class Peel:
    """One train.

    head, tail  bases of the modes peeled off either end, (a n, r) and (n b, r)
    held        what is left of the pieces of this process, (before, rows, behind), once there is
                room
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

    @property
    def turns(self) -> list[int]:
        """The modes in the order in which they are peeled off."""
        return [*range(len(self.sizes) - 1, self.along, -1), *range(self.along)]

    def cores(self) -> tuple[list[Tensor], int]:
        """All of them, and which one has the norm."""
        for mode in self.turns:
            self._bases(mode).append(self._basis(mode))
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
        for mode in self.turns if self.ranks else ():
            r = self._rank(mode) or self._side(mode)
            shape = self._side(mode), r
            self._bases(mode).append(torch.empty(shape, dtype=self.reading.dtype, device="meta"))
            needs.append(self._need)
        what = f"tt of rank {(1, *self.ranks, 1)}" if self.ranks else "tt"
        check_room(what, self.reading.limit, needs, self.along)

    def _bases(self, mode: int) -> list[Tensor]:
        return self.tail if mode > self.along else self.head

    def _side(self, mode: int) -> int:
        """Of the unfolding whose side ends with the mode."""
        return self.sizes[mode] * _width(self._bases(mode))

    def _rank(self, mode: int) -> int | None:
        return None if self.ranks is None else self.ranks[mode - 1 if mode > self.along else mode]

    def _basis(self, mode: int) -> Tensor:
        """The leading vectors (side, r) of the unfolding whose side ends with `mode`."""
        reading, side, r = self.reading, self._side(mode), self._rank(mode)
        if r == side:
            basis = identity(side, torch.empty(0, dtype=reading.dtype, device=reading.device))
        else:
            vectors, energies = self._spectrum(mode)
            if r is None:
                assert self.budget is not None
                r = self.budget.choose(energies)
            basis = complete(vectors[:, :r], r).to(reading.dtype)
        if self.held is not None:
            self.held = _contracted(self.held, basis, mode > self.along)
        return basis

    def _spectrum(self, mode: int) -> tuple[Tensor, Tensor]:
        """Left singular vectors of the side, and energies."""
        reading, side = self.reading, self._side(mode)
        if self.held is None and self._may_hold:
            self.held = self._gathered()
        if self.held is not None and self._others(side) < side:
            _, values, right = divided_svd(self._rows_of(self.held, mode), reading.group)
            return right.T, values**2
        found = WholeSide(side, reading)
        if self.held is None:
            for _, rest in self._read():
                found.add(self._rows_of(rest, mode), 1)
        elif self.held.numel():
            found.add(self._rows_of(self.held, mode), 1)
        return found.spectrum()

    def _rows_of(self, rest: Tensor, mode: int) -> Tensor:
        """The unfolding, its side last."""
        side = self._side(mode)
        many = rest.numel() // side
        return rest.reshape(many, side) if mode > self.along else rest.reshape(side, many).T

    # ---- what there is room for -------------------------------------------------------------

    @property
    def _need(self) -> Need:
        """For the mode that is next, or for what is left at the end."""
        if self._may_hold:
            return self._held_need
        begun = [self._held_need] if self.head or self.tail else []
        return min([self._read_need, *begun], key=lambda need: need.least)

    @property
    def _may_hold(self) -> bool:
        """Whether what is left of all pieces here, and its spectrum, has room; as all ranks see
        it, which have their pieces in memory or in files of one kind."""
        begun = bool(self.head or self.tail)
        return begun and self.reading.limit >= self._held_need.least

    @property
    def _read_need(self) -> Need:
        mode = self._next
        held = self._known if mode is None else self._known + WholeSide.held(self._side(mode))
        return Need(held, self._each)

    @property
    def _held_need(self) -> Need:
        before, after = self._left
        numbers = before * self.reading.most * after
        spectrum, mode = 0, self._next
        if mode is not None:
            side = self._side(mode)
            in_full = 4 * 8 * numbers
            by_gram = WholeSide.held(side) + 8 * numbers
            if self._others(side) < side or self.reading.dtype == torch.float64:
                by_gram = in_full + min(WholeSide.held(side), in_full)
            spectrum = by_gram
        return Need(self._known + 3 * numbers * self.reading.dtype.itemsize + spectrum, self._each)

    @property
    def _next(self) -> int | None:
        done = len(self.head) + len(self.tail)
        return self.turns[done] if done < len(self.turns) else None

    @property
    def _known(self) -> int:
        """Bytes of the bases."""
        count = sum(basis.numel() for basis in (*self.head, *self.tail))
        return 2 * count * self.reading.dtype.itemsize

    @property
    def _each(self) -> int:
        """Bytes for a row of a piece: as it is read, contracted, and added."""
        reading = self.reading
        contracted = 2 * reading.row * reading.dtype.itemsize if self.head or self.tail else 0
        return reading.row_bytes(self.axes) + contracted + WholeSide.each(reading)

    @property
    def _left(self) -> tuple[int, int]:
        """Numbers before and behind the divided mode that a row of what is left has."""
        first, last = len(self.head), len(self.sizes) - len(self.tail)
        before = math.prod(self.sizes[first : self.along]) * _width(self.head)
        return before, math.prod(self.sizes[self.along + 1 : last]) * _width(self.tail)

    def _others(self, side: int) -> int:
        """The other side of the unfolding, over all ranks."""
        before, after = self._left
        return before * self.sizes[self.along] * after // side

    # ---- pieces -----------------------------------------------------------------------------

    def _gathered(self) -> Tensor:
        if self.held is not None:
            return self.held
        before, after = self._left
        reading = self.reading
        sizes = before, reading.count, after
        found = torch.empty(sizes, dtype=reading.dtype, device=reading.device)
        for own, rest in self._read(self._held_need):
            found[:, own] = rest
        return found

    def _read(self, need: Need | None = None) -> Iterator[tuple[slice, Tensor]]:
        """What is left of the pieces, (before, rows, behind); a pass."""
        reading, need = self.reading, need or self._read_need
        check_room("the next core of tt", reading.limit, [need], self.along)
        rows = rows_within(reading.limit, need, reading.most)
        before = math.prod(self.sizes[: self.along])
        for own, piece in reading.pieces(rows, self.axes):
            rest = piece.reshape(before, own.stop - own.start, -1)
            for basis in self.tail:
                rest = _contracted(rest, basis, True)
            for basis in self.head:
                rest = _contracted(rest, basis, False)
            yield own, rest


def _width(bases: list[Tensor]) -> int:
    """Rank of the bond behind the modes that were peeled off an end."""
    return int(bases[-1].shape[1]) if bases else 1


def _contracted(rest: Tensor, basis: Tensor, behind: bool) -> Tensor:
    """(before, rows, behind) with (n, r) at either end."""
    before, rows, after = rest.shape
    n, r = basis.shape
    if behind:
        product = rest.reshape(before * rows * (after // n), n) @ basis
        return product.reshape(before, rows, after // n * r)
    product = basis.T @ rest.reshape(n, before // n * rows * after)
    return product.reshape(before // n * r, rows, after)
