"""Singular value decompositions of a stack of matrices of one size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from tensorlrf.decomposition.linalg._spectrum import balanced, whole_spectrum


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
        """The whole of each matrix (B, rows, columns)."""
        spectrum = whole_spectrum(stack)
        return cls(*spectrum.triples, spectrum.energies)

    @property
    def triples(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.left, self.values, self.right

    @cached_property
    def sides(self) -> tuple[Tensor, Tensor]:
        """left (B, rows, k) and right (B, k, columns), roots of singular values on either."""
        return balanced(*self.triples)

    def split(self, b: int, r: int) -> tuple[Tensor, Tensor]:
        """left (rows, r) and right (r, columns) of matrix b, views of `sides`."""
        left, right = self.sides
        return left[b, :, :r], right[b, :r]

    def split_some(self, some: slice, r: int) -> tuple[Tensor, Tensor]:
        """The same for some of the matrices, stacked."""
        left, right = self.sides
        return left[some, :, :r], right[some, :r]
