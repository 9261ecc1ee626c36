"""A weight on given blocks: from ranks to factors, and from a budget or an error to ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, TypeVar

import torch

from tensorlrf.decomposition._descent import Descent
from tensorlrf.decomposition._evbmf import unfolding_rank
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._fit_or_plain import fit_or_plain
from tensorlrf.decomposition._search import smallest_within
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.blocks._allocation import Allocation, Piece, Ranks
from tensorlrf.decomposition.blocks._blr_outputs import (
    BlockState,
    Content,
    Outputs,
    balanced_panels,
)
from tensorlrf.decomposition.blocks._blr_spectra import BlockRange, Energies
from tensorlrf.errors import RankError
from tensorlrf.factors import BlockLowRank, Factors

F = TypeVar("F", bound=Factors)

NOISE = 16
"""What is left below this many roundings of the whole is not worth a parameter of a share."""

TRIAL = 4
"""Sweeps after which ways of sharing ranks out are compared."""


@dataclass(frozen=True)
class Tiling:
    """Blocks that tile a weight; `pieces` know their energies, `cut` gives block i at a rank."""

    target: Target[Any]
    places: Sequence[BlockRange]
    pieces: Sequence[Piece]
    cut: Callable[[int, int | None], Content]

    @property
    def allocation(self) -> Allocation:
        return Allocation(self.pieces)

    @property
    def energy(self) -> float:
        return float(sum(p.energies.sum() + p.rest for p in self.pieces))

    @property
    def fixed(self) -> int:
        """Parameters of the blocks that can only be dense."""
        return sum(p.whole for p in self.pieces if not p.low_rank)

    def contents(self, ranks: Ranks) -> list[Content]:
        """The blocks, each the nearest of its rank."""
        return [self.cut(i, rank) for i, rank in enumerate(ranks)]

    def packed(self, contents: Sequence[Content]) -> BlockLowRank:
        """Factors in the dtype of the weight."""
        root, dtype = self.target.root, self.target.dtype
        blocks: list[tuple[int, int, Content]] = []
        for place, content in zip(self.places, contents, strict=True):
            if isinstance(content, tuple):
                left, right = content
                content = (left * root).to(dtype), (right * root).to(dtype)
            else:
                content = (content * self.target.scale).to(dtype)
            blocks.append((place.row, place.column, content))
        return BlockLowRank.pack(blocks, self.target.shape)

    def with_energies(self, energies: Sequence[Energies]) -> Tiling:
        """The same blocks, shared out by other energies."""
        pieces = zip(self.pieces, energies, strict=True)
        return replace(self, pieces=[replace(p, energies=e, rest=0.0) for p, e in pieces])

    def within_params(self, params: int) -> Ranks:
        """Ranks shared out over `params` parameters; none goes to what is but rounding."""
        rounding = (NOISE * self.target.floor) ** 2 * self.energy
        return self.allocation.within_params(params, rounding)


class Blocks(Protocol):
    """A tiling, from ranks to factors."""

    def solve(self, ranks: Ranks, how: str) -> Fit[BlockLowRank]:
        """Blocks of these ranks, which were found so."""

    def within_params(self, params: int) -> Fit[BlockLowRank]:
        """Ranks shared out over `params` parameters."""

    def within_error(self, error: float) -> Fit[BlockLowRank]:
        """Few parameters with a true error of at most `error`, after the cast."""


def blocks_of(tiling: Tiling, n_iter_max: int, tol: float | None, measure: bool = True) -> Blocks:
    """The nearest blocks, or in the metric of the inputs those that serve the outputs."""
    if tiling.target.is_plain:
        return NearestBlocks(tiling, measure)
    return OutputBlocks(tiling, n_iter_max, tol)


@dataclass(frozen=True)
class NearestBlocks:
    """Each block the nearest of its rank: they share no entries, so that the whole is, too.

    measure   whether the error of given ranks is asked for (else it is NaN)
    """

    tiling: Tiling
    measure: bool = True

    def solve(self, ranks: Ranks, how: str) -> Fit[BlockLowRank]:
        factors = self.tiling.packed(self.tiling.contents(ranks))
        error = self.tiling.target.error(factors) if self.measure else math.nan
        return Fit(factors, (error,), True, how)

    def within_params(self, params: int) -> Fit[BlockLowRank]:
        ranks = self.tiling.within_params(params)
        return self.solve(ranks, f"ranks shared out over {params} parameters")

    def within_error(self, error: float) -> Fit[BlockLowRank]:
        allocation, how = self.tiling.allocation, f"ranks shared out within {error}"
        lost = max(error, self.tiling.target.floor) ** 2 * self.tiling.energy
        first = self.solve(allocation.within_energy(lost), how)
        if first.error <= error:
            return first
        below, how = allocation.first_within(lost), f"{how} after rounding"
        return fewest_steps(allocation, below, error, lambda ranks: self.solve(ranks, how))


@dataclass(frozen=True)
class OutputBlocks:
    """Blocks that serve the outputs: by block coordinate descent from the nearest ones."""

    tiling: Tiling
    n_iter_max: int
    tol: float | None

    @cached_property
    def outputs(self) -> Outputs:
        """What is descended in."""
        return Outputs(self.tiling.target, self.tiling.places)

    def solve(self, ranks: Ranks, how: str) -> Fit[BlockLowRank]:
        """In the outputs never worse than the plain ones."""
        return self._finish(self._begin(ranks, 0), ranks)

    def within_params(self, params: int) -> Fit[BlockLowRank]:
        """The best of three ways of sharing `params` out: by the energies of the weight, of the
        outputs of each block by itself, and of what each block makes good at the better of these.

        They are compared after some sweeps, and the best is continued.
        """
        by_weight = self.tiling.within_params(params)
        alone = self.tiling.with_energies(self.outputs.energies())
        first = [self._begin(ranks, TRIAL) for ranks in (by_weight, alone.within_params(params))]
        best = min(first, key=lambda run: run.error)
        residual = self.outputs.residual(best.state.contents)
        again = self.tiling.with_energies(self.outputs.energies(residual)).within_params(params)
        best = min(best, self._begin(again, TRIAL), key=lambda run: run.error)
        return self._finish(best, by_weight)

    def _begin(self, ranks: Ranks, sweeps: int) -> Descent[BlockState]:
        start = self.outputs.start(self.tiling.contents(ranks), ranks)
        return self.outputs.descend(start, min(sweeps, self.n_iter_max), self.tol)

    def _finish(self, run: Descent[BlockState], usual_ranks: Ranks) -> Fit[BlockLowRank]:
        """`run` continued if it has not settled; or the plain blocks of `usual_ranks`, if the cast
        left these better."""
        run = self.outputs.descend(run, self.n_iter_max - run.sweeps, self.tol)
        tiling = self.tiling
        served = tiling.packed([balanced_panels(content) for content in run.state.contents])
        fit = Fit(served, run.errors, run.converged, run.how("a sweep gained little more"))

        def usual() -> BlockLowRank:
            return tiling.packed(tiling.contents(usual_ranks))

        return fit_or_plain(tiling.target, usual, lambda: fit)

    def within_error(self, error: float) -> Fit[BlockLowRank]:
        """Few parameters with an output error of at most `error`: a search along the steps of the
        energies of the outputs of each block."""
        allocation = self.tiling.with_energies(self.outputs.energies()).allocation

        def solve(ranks: Ranks) -> Fit[BlockLowRank]:
            start = self.outputs.start(self.tiling.contents(ranks), ranks)
            # A little less than asked, for the rounding of the cast.
            run = self.outputs.descend(start, self.n_iter_max, self.tol, 0.98 * error)
            return self._finish(run, ranks)

        return fewest_steps(allocation, -1, error, solve)


def fewest_steps(
    allocation: Allocation, below: int, error: float, solve: Callable[[Ranks], Fit[F]]
) -> Fit[F]:
    """A number of steps above `below` that keeps `error` and one less does not."""
    climb = (len(allocation),)
    found = smallest_within(lambda k: solve(allocation.state(k)), error, climb, below=below)
    return found.fit if found.within else replace(found.fit, converged=False)


def uniform(pieces: Sequence[Piece], rank: int) -> Ranks:
    """The same rank for all blocks, less where a block is smaller; dense where a block may not be
    of low rank, or where that is cheaper."""
    ranks: Ranks = []
    for piece in pieces:
        r = min(rank, piece.rows, piece.columns)
        dense = not piece.low_rank or (piece.dense and r * piece.each >= piece.whole)
        ranks.append(None if dense else r)
    return ranks


def estimated(pieces: Sequence[Piece], dtype: torch.dtype) -> Ranks:
    """For every block of a weight of `dtype` the analytic estimate of `evbmf_rank`, 0 for one that
    is noise alone.

    None is to be dense: the estimate is below L M / (L + M), where it would cost as much.
    """
    return [
        unfolding_rank(torch.from_numpy(piece.energies).sqrt(), (piece.rows, piece.columns), dtype)
        for piece in pieces
    ]


def check_block_rank(rank: int, rows: int, columns: int) -> int:
    """`rank`, if a block (rows, columns) can have it."""
    if rank > min(rows, columns):
        raise RankError(
            f"rank={rank} is above min(rows, columns) = {min(rows, columns)} of the {rows} x "
            f"{columns} blocks; use at most {min(rows, columns)}, or larger blocks"
        )
    return rank
