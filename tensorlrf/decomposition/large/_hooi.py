"""Higher-order orthogonal iteration on a divided tensor.

A sweep is two passes. In one the tensor is contracted with the factor of the divided mode, whose
rows belong to the pieces; all other factors follow from what is left, (r_d n_2 n_3 ...) numbers,
without the data. In the other the pieces are contracted with these, and what is left, (n_d r_2 r_3
...), gives the factor of the divided mode and the core. The first of the next sweep measures the
true residual on its way. Where its sum has no room, the other modes go in groups, a pass each.

What ranks tell each other is small: for each mode a tensor that is contracted along all others, an
R factor for the divided one, and the core.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tensorlrf.decomposition.large._divided import Reading
from tensorlrf.decomposition.large._memory import Need, check_room, parted, rows_within
from tensorlrf.decomposition.large._residual import blocks, residual_bytes
from tensorlrf.decomposition.large._sides import WholeSide, divided_svd
from tensorlrf.decomposition.linalg._gram import complete
from tensorlrf.decomposition.linalg._spectrum import ratio
from tensorlrf.decomposition.linalg.multilinear._residual import sum_of_squares
from tensorlrf.decomposition.tucker._hooi import Basis, contract, hooi_sweep
from tensorlrf.decomposition.tucker._solve import FINE
from tensorlrf.factors.algebra import mode_product


class Iterate(NamedTuple):
    """Where HOOI is.

    core, basis  of the model; of the divided mode the rows of this process
    partial      this process's part of the tensor contracted with the factor of the divided mode,
                 and with those of all modes but the first group of the others
    error        the true relative error
    """

    core: Tensor
    basis: Basis
    partial: Tensor
    error: float


@dataclass(frozen=True)
class Passes:
    """How a sweep goes over the data.

    groups  of the other modes that are factored: a pass for each
    start   rows of a slab as Grams are summed
    rows    as the tensor is contracted
    """

    groups: tuple[tuple[int, ...], ...]
    start: int
    rows: int


@dataclass(frozen=True)
class Room:
    """What a Tucker of a tensor takes, `others` being the factored modes but the divided one."""

    reading: Reading
    others: tuple[int, ...]

    @property
    def grams(self) -> Need:
        """As Grams are summed, of what is left by factors of other modes."""
        reading, sizes = self.reading, self.reading.shape
        held = 8 * sum(sizes[k] ** 2 for k in self.others)
        held += max((WholeSide.held(sizes[k]) for k in self.others), default=0)
        left = 2 * reading.row * reading.dtype.itemsize
        return Need(held, reading.row_bytes() + WholeSide.each(reading) + left)

    def start(self) -> int:
        """Rows of a slab as Grams are summed; ArgumentError where there is no room."""
        reading = self.reading
        check_room("the spectra of tucker", reading.limit, [self.grams], reading.axes[0])
        return rows_within(reading.limit, self.grams, reading.most)

    def passes(self, ranks: Mapping[int, int], wider: int) -> Passes:
        """For these ranks; ArgumentError that names the least limit where there is no room."""
        reading, sizes, limit = self.reading, self.reading.shape, self.reading.limit
        unit = reading.dtype.itemsize
        narrow = {k: ranks[k] if k in ranks else sizes[k] for k in range(len(sizes))}
        wide = {k: min(sizes[k], wider * ranks[k]) if k in ranks else sizes[k] for k in narrow}
        columns = math.prod(wide[k] for k in range(1, len(sizes)))
        factors = 3 * unit * sum(sizes[k] * wide[k] for k in ranks) + residual_bytes(reading)
        # Contracted rows, in float64 with their vectors as well, and the small tensor.
        contracted = reading.most * columns * (unit + 3 * 8) + 3 * unit * wide[0] * columns
        first = min((wide[k] / sizes[k] for k in self.others), default=1.0)
        each = reading.row_bytes() + math.ceil(2 * first * reading.row * unit)
        shares = [sizes[k] / narrow[k] for k in self.others]
        core = math.prod(narrow.values())
        for count in range(1, max(1, len(self.others)) + 1):
            groups = parted(shares, count) if self.others else ((0, 0),)
            largest = max(math.prod(shares[a:b]) for a, b in groups)
            held = factors + max(contracted, math.ceil(3 * unit * core * largest))
            if rows := rows_within(limit, need := Need(held, each), reading.most):
                break
        what = f"tucker of ranks {tuple(ranks[k] for k in sorted(ranks))}"
        check_room(what, limit, [self.grams, need], reading.axes[0])
        named = tuple(tuple(self.others[a:b]) for a, b in groups)
        return Passes(named, self.start(), rows)


class DividedHOOI:
    """Sweeps over a divided tensor; `order` is that in which the other modes are contracted."""

    def __init__(
        self,
        reading: Reading,
        passes: Passes,
        norm: float,
        order: Sequence[int],
        ranks: Mapping[int, int],
    ) -> None:
        self.reading, self.passes, self.norm = reading, passes, norm
        self.order, self.ranks = list(order), dict(ranks)

    def sweep(self, at: Iterate) -> tuple[Iterate, float]:
        """All factors once, and the core; no state is changed."""
        basis, partial = dict(at.basis), at.partial
        for number, group in enumerate(self.passes.groups):
            if number > 0:
                partial = self._contracted(basis, group)
            modes = [k for k in self.order if k in group]
            if modes:
                total = self.reading.group.total
                hooi_sweep(partial, modes, basis, fine=at.error < FINE, whole=total)
        contracted = self.contracted_rows(basis)
        basis[0] = self.leading_rows(contracted, self.ranks[0])[0]
        return self.measured(self.core(contracted, basis[0]), basis)

    def measured(self, core: Tensor, basis: Basis) -> tuple[Iterate, float]:
        """With the true error, and what the next sweep begins with; one pass."""
        found = torch.zeros((), dtype=torch.float64, device=self.reading.device)
        first, partial = self.passes.groups[0], None
        for own, piece in self.reading.pieces(self.passes.rows):
            rows = {**basis, 0: basis[0][own]}
            for some in blocks(piece):
                found += square_residual(piece[some], core, {**rows, 0: rows[0][some]})
            partial = self._added(partial, piece, rows, first)
        error = ratio(self.reading.group.total(found[None])[0], self.norm**2)
        return Iterate(core, basis, self._there(partial, basis, first), error), error

    def contracted_rows(self, basis: Basis) -> Tensor:
        """The rows of this process, contracted along all other factored modes; one pass."""
        sizes = [
            int(basis[k].shape[1]) if k in basis else n for k, n in enumerate(self.reading.shape)
        ]
        found = torch.empty(
            self.reading.count, *sizes[1:], dtype=self.reading.dtype, device=self.reading.device
        )
        for own, piece in self.reading.pieces(self.passes.rows):
            found[own] = contract(piece, basis, self.order)
        return found

    def leading_rows(self, contracted: Tensor, r: int) -> tuple[Tensor, Tensor]:
        """The rows of the first r left singular vectors of the divided mode, and all energies."""
        group = self.reading.group
        left, values, _ = divided_svd(contracted.flatten(1), group)
        if left.shape[1] < r:
            left = complete(torch.cat(group.rows(left)), r)[self.reading.own]
        return left[:, :r].to(self.reading.dtype), values**2

    def core(self, contracted: Tensor, rows: Tensor) -> Tensor:
        """Of contracted rows and the factor of the divided mode."""
        return self.reading.group.total(mode_product(contracted, rows.T, 0))

    def _contracted(self, basis: Basis, group: Sequence[int]) -> Tensor:
        """A pass for the modes of a group."""
        partial = None
        for own, piece in self.reading.pieces(self.passes.rows):
            partial = self._added(partial, piece, {**basis, 0: basis[0][own]}, group)
        return self._there(partial, basis, group)

    def _added(
        self, partial: Tensor | None, piece: Tensor, rows: Basis, group: Sequence[int]
    ) -> Tensor:
        part = contract(piece, rows, [k for k in self.order if k not in group])
        if partial is None:
            return mode_product(part, rows[0].T, 0)
        partial.flatten(1).addmm_(rows[0].T, part.flatten(1))
        return partial

    def _there(self, partial: Tensor | None, basis: Basis, group: Sequence[int]) -> Tensor:
        """Zeros where this process has no piece."""
        if partial is not None:
            return partial
        kept = [k for k in basis if k not in group]
        sizes = [
            int(basis[k].shape[1]) if k in kept else n for k, n in enumerate(self.reading.shape)
        ]
        return torch.zeros(sizes, dtype=self.reading.dtype, device=self.reading.device)


def square_residual(piece: Tensor, core: Tensor, rows: Basis) -> Tensor:
    """||X - X_hat||^2 of a piece, the residual itself, (), float64."""
    rebuilt = core
    for k in sorted(rows, key=lambda k: rows[k].shape[0] / core.shape[k]):
        rebuilt = mode_product(rebuilt, rows[k], k)
    return sum_of_squares((piece - rebuilt).flatten(1))
