"""Singular value decompositions of a stack of matrices of one size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tensorlrf.decomposition.linalg._batched import batched_svd, short_grams
from tensorlrf.decomposition.linalg._gram import descending_eigh
from tensorlrf.decomposition.linalg._spectrum import balanced
from tensorlrf.decomposition.linalg.parallel import over_places


@dataclass(frozen=True)
class StackedSVD:
    """U (B, rows, k), S (B, k) descending and V^T (B, k, columns) of each of B matrices.

    energies   squared singular values in float64
    """

    left: Tensor
    values: Tensor
    right: Tensor
    energies: Tensor

    @classmethod
    def of(cls, stack: Tensor) -> StackedSVD:
        """The whole of each matrix (B, rows, columns); for float32 by eigenvectors of the Gram of
        the short side, summed in float64."""
        if stack.dtype == torch.float64:
            left, values, right = batched_svd(stack)
            return cls(left, values, right, values**2)
        energies, vectors = stacked_eigh(short_grams(stack))
        return cls(*carried(stack, vectors), energies)

    @property
    def triples(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.left, self.values, self.right

    @cached_property
    def sides(self) -> tuple[Tensor, Tensor]:
        """left (B, rows, k) and right (B, k, columns), roots of singular values on either."""
        left, right = torch.vmap(balanced)(*self.triples)
        return left, right

    def split(self, b: int, r: int) -> tuple[Tensor, Tensor]:
        """left (rows, r) and right (r, columns) of matrix b, views of `sides`."""
        left, right = self.sides
        return left[b, :, :r], right[b, :r]

    def split_some(self, some: slice, r: int) -> tuple[Tensor, Tensor]:
        """The same for some of the matrices, stacked."""
        left, right = self.sides
        return left[some, :, :r], right[some, :r]


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
