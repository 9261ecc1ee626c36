"""Ways to a truncated matrix: what is computed once, and cut at any rank afterwards."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from tensorlrf.decomposition.linalg._gram import short_gram, short_spectra, thin_svd
from tensorlrf.decomposition.linalg._leading import leading_eigh


class Spectrum(Protocol):
    """A matrix W (m, n) taken apart, to be cut at a rank."""

    @property
    def energies(self) -> Tensor:
        """Float64, descending: what the r-th direction adds to the squared norm of W."""

    def split(self, r: int) -> tuple[Tensor, Tensor]:
        """The best left (m, r) and right (r, n), in the dtype of W."""

    def rel_error(self, left: Tensor, right: Tensor) -> float:
        """True relative error of left @ right in the norm of the energies."""


class FullSVD:
    """U S V^T by LAPACK, of a matrix or of many (*batch, m, n)."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self.left, self.values, self.right = thin_svd(matrix)
        self.energies = self.values.to(torch.float64) ** 2

    @property
    def triples(self) -> tuple[Tensor, Tensor, Tensor]:
        """U, S and V^T."""
        return self.left, self.values, self.right

    def split(self, r: int) -> tuple[Tensor, Tensor]:
        return balanced(self.left[..., :r], self.values[..., :r], self.right[..., :r, :])

    def rel_error(self, left: Tensor, right: Tensor) -> float:
        return frobenius_error(self.matrix, left, right)


class SketchedSVD(FullSVD):
    """U S V^T within a given basis Q (m, s) of nearly the range: Q times the SVD of Q^T W."""

    def __init__(self, matrix: Tensor, basis: Tensor) -> None:
        super().__init__(basis.T @ matrix)
        self.matrix = matrix
        self.left = basis @ self.left


class ShortSideEigh:
    """Eigenvectors of the Gram of the short side, summed in float64; of a matrix or of many
    (*batch, m, n).

    With `most` it is to be cut at that rank at most: no more vectors are sought than these, where
    that is shorter. `grams` is the dtype of the Grams of many.
    """

    def __init__(
        self, matrix: Tensor, most: int | None = None, grams: torch.dtype = torch.float64
    ) -> None:
        self.matrix = matrix
        if matrix.ndim == 2:
            gram = short_gram(matrix)
            energies, vectors = leading_eigh(gram, most or len(gram))
        else:
            energies, vectors = short_spectra(matrix, most, matrix.dtype, grams)
        self.energies = energies.to(torch.float64)
        self.vectors = vectors.to(matrix.dtype)  # of the short side

    @property
    def triples(self) -> tuple[Tensor, Tensor, Tensor]:
        """U, S and V^T."""
        return carried(self.matrix, self.vectors)

    def split(self, r: int) -> tuple[Tensor, Tensor]:
        return balanced(*carried(self.matrix, self.vectors[..., :r]))

    def rel_error(self, left: Tensor, right: Tensor) -> float:
        return frobenius_error(self.matrix, left, right)


def whole_spectrum(matrix: Tensor) -> FullSVD | ShortSideEigh:
    """By the way that keeps the digits of its dtype and takes least."""
    return FullSVD(matrix) if matrix.dtype == torch.float64 else ShortSideEigh(matrix)


def carried(matrix: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, S and V^T of matrices (*batch, m, n) from singular vectors (*batch, k, r) of the short
    side, and the matrices themselves for the other side."""
    if matrix.shape[-2] <= matrix.shape[-1]:
        right = vectors.mT @ matrix  # S V^T, rows of length s_j
        values = torch.linalg.vector_norm(right, dim=-1)
        return vectors, values, right / torch.where(values > 0, values, 1)[..., None]
    left = matrix @ vectors  # U S
    values = torch.linalg.vector_norm(left, dim=-2)
    return left / torch.where(values > 0, values, 1)[..., None, :], values, vectors.mT


def balanced(left: Tensor, values: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Half of each singular value (*batch, r), as a root, to either side."""
    roots = values.sqrt()
    return left * roots[..., None, :], roots[..., None] * right


def frobenius_error(matrix: Tensor, left: Tensor, right: Tensor) -> float:
    """||W - left right|| / ||W||, the residual itself, some rows at a time; absolute if W is 0."""
    left, right = left.detach(), right.detach()
    rows = max(1, (1 << 18) // matrix.shape[1])
    residual = 0.0
    for w, u in zip(torch.split(matrix, rows), torch.split(left, rows), strict=True):
        residual += squared_norm(torch.addmm(w, u, right, alpha=-1))
    return ratio(residual, squared_norm(matrix))


def squared_norm(matrix: Tensor) -> float:
    """Sum of squares: within rows as the matrix is, over rows in float64."""
    rows: Tensor = torch.linalg.vector_norm(matrix.detach(), dim=1)
    return float(rows.to(torch.float64).square().sum())


def ratio(residual: Tensor | float, norm: Tensor | float) -> float:
    """sqrt(residual / norm) of two squares; sqrt(residual) where the norm is zero. NaN stays."""
    residual, norm = max(float(residual), 0.0), float(norm)
    return math.sqrt(residual / norm) if norm > 0 else math.sqrt(residual)
