"""Singular values of many blocks at once, to be cut at ranks of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tensorlrf.decomposition.blocks._blr_truncated import truncated
from tensorlrf.decomposition.linalg._stacked_svd import StackedSVD

Energies = npt.NDArray[np.float64]
"""Squared singular values, descending."""


class BlockRange(NamedTuple):
    """Where a block lies: its first row and column, and its size."""

    row: int
    column: int
    rows: int
    columns: int

    def of(self, matrix: Tensor) -> Tensor:
        """The block of a matrix (m, n), or of each of (b, m, n), a view."""
        rows = slice(self.row, self.row + self.rows)
        return matrix[..., rows, self.column : self.column + self.columns]


def grid(shape: tuple[int, int], block: tuple[int, int]) -> list[BlockRange]:
    """Blocks of one size, row by row; those of the last row and column may be smaller."""
    (m, n), (mb, nb) = shape, block
    return [
        BlockRange(row, column, min(mb, m - row), min(nb, n - column))
        for row in range(0, m, mb)
        for column in range(0, n, nb)
    ]


class BlockSpectra:
    """The blocks of a matrix (m, n) at given places, each taken apart by an SVD; or those of each
    of many matrices (b, m, n), whose energies and contents are then stacked.

    energies   of every block: (k,), or (b, k); the first `keep` where no more are asked for
    """

    def __init__(
        self, matrix: Tensor, places: Sequence[BlockRange], keep: int | None = None
    ) -> None:
        self.matrix = matrix
        self.places = tuple(places)
        many = tuple(matrix.shape[:-2])
        where: dict[int, tuple[StackedSVD, int]] = {}
        energies: dict[int, Energies] = {}
        sizes: dict[tuple[int, int], list[int]] = {}
        for i, place in enumerate(places):
            sizes.setdefault((place.rows, place.columns), []).append(i)
        for members in sizes.values():
            stack = torch.stack([places[i].of(matrix) for i in members])
            most = None if keep is None else min(keep, *stack.shape[-2:])
            flat = stack.flatten(0, -3)
            stacked = StackedSVD.of(flat) if most is None else truncated(flat, most)
            of_stack = stacked.energies.reshape(len(members), *many, -1).cpu().numpy()
            for j, i in enumerate(members):
                where[i] = stacked, j
                energies[i] = of_stack[j]
        self._where = where
        self.energies = [energies[i] for i in range(len(places))]

    def content(self, i: int, rank: int | None) -> Tensor | tuple[Tensor, Tensor]:
        """Block i: as it is for rank None, else left (rows, rank) and right (rank, columns)."""
        if rank is None:
            return self.places[i].of(self.matrix)
        stacked, j = self._where[i]
        if self.matrix.ndim == 2:
            return stacked.split(j, rank)
        b = len(self.matrix)
        return stacked.split_some(slice(j * b, (j + 1) * b), rank)
