"""Singular values of many blocks at once, to be cut at ranks of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tensorlrf.decomposition._batched import short_grams
from tensorlrf.decomposition._gram import descending_eigh, thin_svd
from tensorlrf.decomposition._side_by_side import over_places
from tensorlrf.decomposition._spectrum import balanced

Energies = npt.NDArray[np.float64]
"""Squared singular values, descending."""


class Place(NamedTuple):
    """Where a block lies: its first row and column, and its size."""

    row: int
    column: int
    rows: int
    columns: int

    def of(self, matrix: Tensor) -> Tensor:
        """The block of a matrix (m, n), or of each of (b, m, n), a view."""
        rows = slice(self.row, self.row + self.rows)
        return matrix[..., rows, self.column : self.column + self.columns]


def grid(shape: tuple[int, int], block: tuple[int, int]) -> list[Place]:
    """Blocks of one size, row by row; those of the last row and column may be smaller."""
    (m, n), (mb, nb) = shape, block
    return [
        Place(row, column, min(mb, m - row), min(nb, n - column))
        for row in range(0, m, mb)
        for column in range(0, n, nb)
    ]


class StackedSVD:
    """The SVD of each of a stack of matrices (B, rows, columns) of one size.

    For float32 by eigenvectors of the Gram of the short side, summed in float64.
    """

    def __init__(self, stack: Tensor) -> None:
        self.stack = stack
        if stack.dtype == torch.float64:
            self.left, values, self.right = _svd(stack)
            self.energies = values**2
        else:
            self.energies, vectors = stacked_eigh(short_grams(stack))
            if stack.shape[1] <= stack.shape[2]:
                self.left = vectors.to(stack.dtype)
                self.right = self.left.mT @ stack
                values = torch.linalg.vector_norm(self.right, dim=2)
                self.right = self.right / torch.where(values > 0, values, 1)[:, :, None]
            else:
                self.right = vectors.mT.to(stack.dtype)
                self.left = stack @ self.right.mT
                values = torch.linalg.vector_norm(self.left, dim=1)
                self.left = self.left / torch.where(values > 0, values, 1)[:, None, :]
        self.values = values

    def split(self, b: int, r: int) -> tuple[Tensor, Tensor]:
        """left (rows, r) and right (r, columns) of matrix b; roots of singular values on either."""
        return balanced(self.left[b, :, :r], self.values[b, :r], self.right[b, :r])

    def split_some(self, some: slice, r: int) -> tuple[Tensor, Tensor]:
        """The same for some of the matrices, stacked."""
        each = self.left[some, :, :r], self.values[some, :r], self.right[some, :r]
        left, right = torch.vmap(balanced)(*each)
        return left, right


class BlockSpectra:
    """The blocks of a matrix (m, n) at given places, each taken apart by an SVD; or those of each
    of many matrices (b, m, n), whose energies and contents are then stacked.

    energies   of every block: (k,), or (b, k)
    """

    def __init__(self, matrix: Tensor, places: Sequence[Place]) -> None:
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
            stacked = StackedSVD(stack.flatten(0, -3))
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


def _svd(stack: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    def some_svds(some: Tensor) -> tuple[Tensor, ...]:
        try:
            return tuple(torch.linalg.svd(some, full_matrices=False))
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            each = [thin_svd(matrix) for matrix in some]
            return tuple(torch.stack(parts) for parts in zip(*each, strict=True))

    left, values, right = over_places(some_svds, (stack,), 6 * stack.numel() * min(stack.shape[1:]))
    return left, values, right


def stacked_eigh(stack: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, descending and not below zero, and eigenvectors of a stack."""

    def some_pairs(some: Tensor) -> tuple[Tensor, ...]:
        try:
            values, vectors = torch.linalg.eigh(some)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            each = [descending_eigh(matrix) for matrix in some]
            return tuple(torch.stack(parts) for parts in zip(*each, strict=True))
        return values.flip(-1).clamp(min=0), vectors.flip(-1)

    values, vectors = over_places(some_pairs, (stack,), 4 * stack.numel() * stack.shape[-1])
    return values, vectors
