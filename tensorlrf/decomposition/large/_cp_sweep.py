"""Sweeps of CP over a divided tensor.

The divided mode comes first, and in one pass. The rows of its factor belong to the pieces: a piece,
contracted with the factors of all other modes, gives the new rows (Kolda & Bader 2009, equation
3.4, row by row), and with these at hand the same piece gives its part of the tensor contracted with
the new factor, from which all other modes follow without the data. A sweep is one pass then; where
that sum, (n_2 n_3 ... r) numbers, has no room, the other modes go in groups, a pass and a smaller
sum for each. What ranks tell each other is small in either case: the Gram (r, r) of the divided
mode, and (n_k, r) for each other one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import mul

import torch
from torch import Tensor

from tensorlrf.decomposition.cp._residual import square_residuals
from tensorlrf.decomposition.cp._state import CPState
from tensorlrf.decomposition.cp._sweep import LEAST, TorchSweeps
from tensorlrf.decomposition.large._divided import Reading
from tensorlrf.decomposition.large._memory import Need, check_room, parted, rows_within
from tensorlrf.decomposition.linalg.multilinear._mttkrp import (
    CutTensor,
    ModeCut,
    contract_left,
    contract_right,
    cut_modes,
    split,
)
from tensorlrf.factors.algebra import khatri_rao


@dataclass(frozen=True)
class Passes:
    """How a sweep goes over the data.

    groups   of the other modes, each (first, last + 1): a pass for each
    rows     of a slab in sweeps
    looked   of a slab in residuals
    """

    groups: tuple[tuple[int, int], ...]
    rows: int
    looked: int

    @classmethod
    def within(cls, reading: Reading, columns: int) -> Passes:
        """The fewest groups for which there is room; `columns` of all starts together.

        Raises ArgumentError that names the least limit where there is none.
        """
        sizes, limit = reading.shape, reading.limit
        unit = columns * reading.dtype.itemsize
        # Factors now, before, and with lengths of one; float64 for a Gram; those of the result.
        factors = 5 * sum(sizes) * unit + 2 * max(sizes) * unit + 6 * columns**2 * 8
        row = reading.row_bytes()
        tail = sizes[1:]
        at = split(tail) if len(tail) > 1 else 0
        ahead, behind = math.prod(tail[:at]), math.prod(tail[at:])
        look = Need(factors + 2 * behind * unit, row + 2 * cut_modes((1, *tail)).width * unit)
        for count in range(1, len(sizes)):
            groups = tuple((1 + a, 1 + b) for a, b in parted(tail, count))
            largest = max(math.prod(sizes[a:b]) for a, b in groups)
            # The sum, what the tree makes of it, and columns of Khatri-Rao products.
            held = factors + (2 * largest + behind + ahead) * unit
            widest = max(_width(sizes, group) for group in groups)
            sweep = Need(held, row + (2 * ahead + widest) * unit)
            if rows := rows_within(limit, sweep, reading.most):
                break
        check_room(f"cp with {columns} columns", limit, [look, sweep], reading.axes[0])
        return cls(groups, rows, rows_within(limit, look, reading.most))


class DividedSweeps(TorchSweeps):
    """Of any number of starts. The factor of the first mode has the rows of this process alone."""

    def __init__(self, reading: Reading, passes: Passes, state: CPState, unit: float) -> None:
        self.reading, self.passes, self.dtype = reading, passes, reading.dtype
        order = range(len(reading.shape))
        self._hold(state, ModeCut(reading.shape, 1, len(order)), order, frozenset(), unit)
        self.identity = torch.eye(self.rank, dtype=torch.float64, device=reading.device)
        self.least = self.identity * LEAST[self.dtype]

    def square_residuals(self) -> list[float]:
        state = self.state()
        found = torch.zeros(self.starts, dtype=torch.float64, device=self.reading.device)
        for own, piece in self.reading.pieces(self.passes.looked):
            factors = (state.factors[0][own], *state.factors[1:])
            found += square_residuals(CutTensor.of(piece), CPState(factors, state.weights))
        squares: list[float] = self.reading.group.total(found).tolist()
        return squares

    def _over_modes(self) -> None:
        first, *others = self.passes.groups
        self._descend(self._with_rows(first), _modes(first))
        for group in others:
            partial = self._zeros(group)
            for own, piece in self._pieces():
                factors = [self.columns[0][own], *self.columns[1:]]
                add_contracted(partial, piece, factors, group)
            self._descend(partial, _modes(group))

    def _with_rows(self, group: tuple[int, int]) -> Tensor:
        """Update the first mode, and contract the tensor with all modes but those of the group."""
        system = reduce(mul, self.grams[1:])
        partial, rows = self._zeros(group), torch.empty_like(self.columns[0])
        for own, piece in self._pieces():
            rhs = contracted_rows(piece, self.columns)
            rows[own] = self._step(self.columns[0][own], rhs, system, self.ridged)
            add_contracted(partial, piece, [rows[own], *self.columns[1:]], group)
        self.columns[0], self.grams[0] = rows, self._gram_along(0, rows)
        return partial

    def _update(self, mode: int, rhs: Tensor) -> None:
        super()._update(mode, self.reading.group.total(rhs))

    def _inner_products(self) -> Tensor:
        found = torch.zeros(
            self.starts * self.rank, dtype=torch.float64, device=self.reading.device
        )
        for own, piece in self._pieces():
            rhs = contracted_rows(piece, self.columns)
            found += self._wide(rhs * self.columns[0][own]).sum(0)
        return self.reading.group.total(found)

    def _gram_along(self, mode: int, columns: Tensor) -> Tensor:
        gram = self._gram(columns)
        return self.reading.group.total(gram) if mode == 0 else gram

    def _unit_columns(self, mode: int) -> tuple[Tensor, Tensor]:
        # Lengths from Grams, which are of all ranks.
        length = self.grams[mode].diagonal(dim1=-2, dim2=-1).sqrt().reshape(-1)
        tiny = torch.finfo(self.dtype).tiny
        unit = self._near(self.columns[mode] / length.clamp_min(tiny))
        return torch.where(length > tiny, unit, self.start[mode]), length

    def _pieces(self) -> Iterator[tuple[slice, Tensor]]:
        return self.reading.pieces(self.passes.rows)

    def _zeros(self, group: tuple[int, int]) -> Tensor:
        size = math.prod(self.reading.shape[slice(*group)])
        return torch.zeros(
            size, self.starts * self.rank, dtype=self.dtype, device=self.reading.device
        )


def contracted_rows(piece: Tensor, columns: Sequence[Tensor]) -> Tensor:
    """The MTTKRP of the first mode, (rows, c), of a piece (rows, n_2, ...): some of the other modes
    by a product of matrices, the rest column by column, so that the Khatri-Rao product of all of
    them is never there."""
    tail = tuple(piece.shape[1:])
    at = split(tail) if len(tail) > 1 else 0
    behind = khatri_rao(tuple(columns[1 + at :]))
    partial = piece.reshape(-1, len(behind)) @ behind  # (rows ahead, c)
    return contract_right(partial, khatri_rao(tuple(columns[1 : 1 + at]))) if at else partial


def add_contracted(
    partial: Tensor, piece: Tensor, columns: Sequence[Tensor], group: tuple[int, int]
) -> None:
    """Add a piece (rows, n_2, ...) contracted with the columns of all modes but those of the group,
    (their sizes' product, c); columns[0] has the rows of the piece."""
    start, stop = group
    ahead = khatri_rao(tuple(columns[:start]))
    if stop == piece.ndim:
        partial.addmm_(piece.reshape(len(ahead), -1).T, ahead)
        return
    behind = khatri_rao(tuple(columns[stop:]))
    partial += contract_left(piece.reshape(-1, len(behind)) @ behind, ahead)


def _modes(group: tuple[int, int]) -> tuple[int, ...]:
    return tuple(range(*group))


def _width(sizes: Sequence[int], group: tuple[int, int]) -> int:
    """Numbers for each column that a row of a piece takes while a group is summed."""
    start, stop = group
    ahead = math.prod(sizes[1:start])
    return ahead if stop == len(sizes) else ahead * (1 + 2 * math.prod(sizes[start:stop]))
