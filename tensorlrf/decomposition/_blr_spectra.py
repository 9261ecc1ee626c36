"""Singular values of many blocks at once, to be cut at ranks of their own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tensorlrf.decomposition._batched import gram_doubt, short_grams, squares
from tensorlrf.decomposition._gram import descending_eigh, thin_svd
from tensorlrf.decomposition._krylov import EXCESS, krylov_svd
from tensorlrf.decomposition._side_by_side import over_places
from tensorlrf.decomposition._solver import choose
from tensorlrf.decomposition._spectrum import balanced

LARGE = 384
"""The shorter side of blocks from which on one is worth a Krylov space."""

FEW = 4
"""Blocks that are tried first, to see whether Grams in float32 will do."""

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

    For float32 by eigenvectors of the Gram of the short side, summed in float64. Where no more than
    `keep` directions are asked for, as `truncated` has them.
    """

    def __init__(self, stack: Tensor, keep: int | None = None) -> None:
        self.stack = stack
        if keep is not None:
            work = 6.0 * stack.numel() * min(stack.shape[1:])
            parts = over_places(partial(truncated, r=keep), (stack,), work)
            self.left, values, self.right = parts
            self.energies = values.to(torch.float64) ** 2
        elif stack.dtype == torch.float64:
            self.left, values, self.right = _svd(stack)
            self.energies = values**2
        else:
            self.energies, vectors = stacked_eigh(short_grams(stack))
            self.left, values, self.right = carried(stack, vectors)
        self.values = values

    @property
    def triples(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.left, self.values, self.right

    def split(self, b: int, r: int) -> tuple[Tensor, Tensor]:
        """left (rows, r) and right (r, columns) of matrix b; roots of singular values on either."""
        return balanced(self.left[b, :, :r], self.values[b, :r], self.right[b, :r])

    def split_some(self, some: slice, r: int) -> tuple[Tensor, Tensor]:
        """The same for some of the matrices, stacked."""
        each = self.left[some, :, :r], self.values[some, :r], self.right[some, :r]
        left, right = torch.vmap(balanced)(*each)
        return left, right


def carried(stack: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, S and V^T of each matrix from the singular `vectors` of its short side."""
    vectors = vectors.to(stack.dtype)
    if stack.shape[1] <= stack.shape[2]:
        right = vectors.mT @ stack
        values = torch.linalg.vector_norm(right, dim=2)
        return vectors, values, right / torch.where(values > 0, values, 1)[:, :, None]
    left = stack @ vectors
    values = torch.linalg.vector_norm(left, dim=1)
    return left / torch.where(values > 0, values, 1)[:, None, :], values, vectors.mT


def truncated(stack: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """U (B, rows, r), S (B, r) and V^T (B, r, columns) of each matrix.

    With a residual of all together of at most 1 + `EXCESS` times the least possible: of large ones
    from Krylov spaces, else from Grams in float32 as far as that is proven to do, and else by
    LAPACK's SVD.
    """
    if min(stack.shape[1:]) >= LARGE:
        lefts, values, rights = zip(*(_one(matrix, r) for matrix in stack), strict=True)
        return torch.stack(lefts), torch.stack(values), torch.stack(rights)
    if stack.dtype != torch.float64 and _by_single_grams(stack[:: max(1, len(stack) // FEW)], r):
        found = _by_single_grams(stack, r)
        if found is not None:
            return found
    return _cut(stack, r)


def _cut(stack: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    left, values, right = _svd(stack)
    return left[:, :, :r], values[:, :r], right[:, :r]


def _one(matrix: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    choice = choose((int(matrix.shape[0]), int(matrix.shape[1])), r, matrix.dtype)
    if choice.method == "krylov":
        draws = torch.Generator(matrix.device).manual_seed(0)
        found = krylov_svd(matrix, r, choice, draws)
        if found is not None:
            return found.left, found.values, found.right
    left, values, right = StackedSVD(matrix[None]).triples
    return left[0, :, :r], values[0, :r], right[0, :r]


def _by_single_grams(stack: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """From Grams summed in float32, in half the time, but for those that leave most in doubt; None
    where these are more than half."""
    energies, vectors = stacked_eigh(short_grams(stack, torch.float32))
    parts = carried(stack, vectors[:, :, :r])
    energies, norms = energies.to(torch.float64), squares(stack)
    doubt = gram_doubt(energies, r)
    best = norms - energies[:, :r].sum(1)  # what the optimum loses, within the doubt
    excess = norms - parts[1].to(torch.float64).square().sum(1) - best + doubt
    order = excess.argsort(descending=True)
    tails = excess[order].flip(0).cumsum(0).flip(0)  # tails[k] is left by all but the first k
    again = order[: int((tails > 2 * EXCESS * (best - doubt).sum()).sum())]
    if 2 * len(again) > len(stack):
        return None
    if len(again):
        for part, exact in zip(parts, _cut(stack[again], r), strict=True):
            part[again] = exact
    return parts


class BlockSpectra:
    """The blocks of a matrix (m, n) at given places, each taken apart by an SVD; or those of each
    of many matrices (b, m, n), whose energies and contents are then stacked.

    energies   of every block: (k,), or (b, k); the first `keep` where no more are asked for
    """

    def __init__(self, matrix: Tensor, places: Sequence[Place], keep: int | None = None) -> None:
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
            stacked = StackedSVD(stack.flatten(0, -3), most)
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
