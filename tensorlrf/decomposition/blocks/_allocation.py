"""Sharing ranks out over blocks, under one budget of parameters or of energy.

A block of r ranks costs r (rows + columns) parameters and leaves its energies beyond r; stored
dense it costs rows x columns and leaves nothing. The steps along the lower convex hull of these
points, of all blocks together, are taken in the order of energy per parameter. Where all steps cost
the same (equal blocks, none dense) each result is optimal, since no other set of as many steps has
more energy; else it is optimal at the ends of steps (Everett 1963), and what is claimed is only
that the budget is kept.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tensorlrf.decomposition.blocks._blr_spectra import Energies
from tensorlrf.decomposition.linalg._budget import TruncationBudget

Ranks = list[int | None]
"""One rank for each block, None for a dense block."""

DENSE = -1
"""What a step reaches that stores its block as it is, in place of a rank."""

SLACK = 1e-9
"""By how much, relative, rounding may set a mean above the largest of what it is the mean of."""


@dataclass(frozen=True)
class Piece:
    """A block to be given a rank.

    energies   of its directions, descending
    rest       energy that no rank has (what a sketch did not see)
    low_rank   whether it may be low-rank; else it is dense
    dense      whether it may be dense
    """

    rows: int
    columns: int
    energies: Energies
    rest: float = 0.0
    low_rank: bool = True
    dense: bool = True

    @property
    def each(self) -> int:
        """Parameters of one rank."""
        return self.rows + self.columns

    @property
    def whole(self) -> int:
        """Parameters of the dense block."""
        return self.rows * self.columns

    @property
    def limit(self) -> int:
        """The largest rank worth having: with `dense`, one that costs less than the entries."""
        below = (self.whole - 1) // self.each if self.dense else self.whole
        return min(len(self.energies), below)

    def tails(self) -> Energies:
        """Energy left out at rank 0, 1, ..., without cancellation."""
        return tails_of(self.energies, self.rest)


class Allocation:
    """Ranks of all blocks: the steps along their hulls, that of most energy per parameter first."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = tuple(pieces)
        self.tails = [piece.tails() for piece in pieces]
        self.start: Ranks = [0 if piece.low_rank else None for piece in pieces]
        steps = [_hull(p, tails) for p, tails in zip(pieces, self.tails, strict=True)]
        counts = [len(rank) for _, _, _, rank in steps]
        density, cost, gain, rank = (np.concatenate([step[i] for step in steps]) for i in range(4))
        order = np.argsort(-density, kind="stable")
        self.piece = np.repeat(np.arange(len(pieces)), counts)[order]
        self.gain, self.rank = gain[order], rank[order].astype(np.int64)
        fixed = sum(p.whole for p in pieces if not p.low_rank)
        self.cost = fixed + np.concatenate([[0], np.cumsum(cost[order])]).astype(np.int64)
        # The energy that is never reached, and then step by step backwards.
        never = sum(
            0.0 if not p.low_rank or p.dense else float(tails[p.limit])
            for p, tails in zip(pieces, self.tails, strict=True)
        )
        backwards = np.concatenate([[never], self.gain[::-1]])
        self.left = np.cumsum(backwards)[::-1]

    def __len__(self) -> int:
        return len(self.piece)

    def state(self, k: int) -> Ranks:
        """The ranks after the first k steps."""
        ranks = list(self.start)
        for piece, rank in zip(self.piece[:k].tolist(), self.rank[:k].tolist(), strict=True):
            ranks[piece] = None if rank == DENSE else rank
        return ranks

    def first_within(self, energy: float) -> int:
        """The fewest steps that leave at most `energy`, all of them where none do."""
        enough = np.nonzero(self.left <= energy)[0]
        return int(enough[0]) if len(enough) else len(self)

    def within_energy(self, energy: float) -> Ranks:
        """Few parameters that leave at most `energy` (all that can be had where that is less)."""
        k = self.first_within(energy)
        budget = TruncationBudget(np.asarray(energy), norm=1.0)
        budget.spend(self.left[k])
        return self.given_back(k, budget, [piece.energies for piece in self.pieces])

    def given_back(
        self, k: int, budget: TruncationBudget[Energies], energies: Sequence[Energies]
    ) -> Ranks:
        """The ranks after the first k steps, without what the budget pays for.

        The last steps may have brought more than was needed: a dense block goes back to the
        smallest rank that will do, and single ranks are given back.

        energies  (*batch, r) of each block, whose means over the batch are those of the pieces
        """
        ranks = self.state(k)
        for i in reversed(np.nonzero(self.rank[:k] == DENSE)[0].tolist()):
            block = int(self.piece[i])
            piece = self.pieces[block]
            tails = tails_of(energies[block], piece.rest)[..., : piece.limit + 1]
            smallest = budget.smallest(tails)
            if smallest < tails.shape[-1]:
                ranks[block] = smallest
                budget.spend(tails[..., smallest])
        # What every place can spare, their mean can.
        spare = self.gain[:k] <= np.max(budget.share) * (1 + SLACK)
        for i in reversed(np.nonzero(spare)[0].tolist()):
            block, rank = int(self.piece[i]), int(self.rank[i])
            if ranks[block] != rank:
                continue
            gain = energies[block][..., rank - 1]
            if budget.covers(gain):
                ranks[block] = rank - 1
                budget.spend(gain)
        return ranks

    def within_params(self, params: int, enough: float = 0.0) -> Ranks:
        """Little energy left with at most `params` parameters.

        Stops where no more than `enough` is left. Where the budget pays for no rank of any block,
        the block that costs least has one, or is dense if that costs no more.
        """
        k = max(0, int(np.searchsorted(self.cost, params, side="right")) - 1)
        if self.left[k] <= enough:
            return self.state(self.first_within(enough))
        ranks = self.state(k)
        room = params - int(self.cost[k])
        waiting: list[tuple[float, int, int, int]] = []  # -density, block, rank before, after
        for i in range(len(ranks)):
            self._offer(waiting, i, ranks[i])
        while waiting:
            _, i, before, after = heapq.heappop(waiting)
            piece = self.pieces[i]
            cost = (piece.whole if after == DENSE else after * piece.each) - before * piece.each
            if ranks[i] == before and cost <= room:
                room -= cost
                ranks[i] = None if after == DENSE else after
                self._offer(waiting, i, ranks[i])
        if not any(r is None or r > 0 for r in ranks):
            i = min(range(len(ranks)), key=self._least)
            piece = self.pieces[i]
            ranks[i] = None if piece.dense and piece.whole <= piece.each else 1
        return ranks

    def _least(self, i: int) -> tuple[int, float]:
        """What block i costs at the least if not nothing, and less what that brings."""
        piece, tails = self.pieces[i], self.tails[i]
        if piece.dense and piece.whole <= piece.each:
            return piece.whole, -float(tails[0])
        return piece.each, -float(tails[0] - tails[1])

    def _offer(self, waiting: list[tuple[float, int, int, int]], i: int, rank: int | None) -> None:
        """What block i could have next: one more rank, or all of it."""
        piece, tails = self.pieces[i], self.tails[i]
        if rank is None:
            return
        if rank < piece.limit:
            gain = float(tails[rank] - tails[rank + 1])
            heapq.heappush(waiting, (-gain / piece.each, i, rank, rank + 1))
        if piece.dense:
            cost = piece.whole - rank * piece.each
            heapq.heappush(waiting, (-float(tails[rank]) / cost, i, rank, DENSE))


def tails_of(energies: Energies, rest: float = 0.0) -> Energies:
    """What is left out (*batch, k + 1) at rank 0, 1, ... of energies (*batch, k), without
    cancellation."""
    tails = np.full((*energies.shape[:-1], energies.shape[-1] + 1), rest)
    tails[..., :-1] += np.cumsum(energies[..., ::-1], axis=-1)[..., ::-1]
    return tails


def _hull(piece: Piece, tails: Energies) -> tuple[Energies, Energies, Energies, Energies]:
    """Energy per parameter, cost, energy and rank reached of each step of one block."""
    if not piece.low_rank:
        return (np.empty(0),) * 4
    last = piece.limit
    gain = piece.energies[:last]
    rank = np.arange(1, last + 1, dtype=np.float64)
    cost = np.full(last, float(piece.each))
    if piece.dense:
        # From which rank on all the rest at once has more energy per parameter than the next.
        jump = piece.whole - piece.each * np.arange(last + 1, dtype=np.float64)
        following = np.append(gain, 0.0) / piece.each
        leap = int(np.argmax(tails[: last + 1] / jump >= following))
        gain = np.append(gain[:leap], tails[leap])
        cost = np.append(cost[:leap], jump[leap])
        rank = np.append(rank[:leap], DENSE)
    # Rounding must not turn two steps of a block around.
    density = np.minimum.accumulate(gain / cost)
    return density, cost, gain, rank
