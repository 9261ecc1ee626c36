"""A weight taken apart by its outputs.

With X the inputs as columns and G = X X^T / N, the mean of |D x|^2 over the inputs is tr(D G D^T).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.linalg._gram import complete, descending_eigh, identity


class OutputSpectrum:
    """W (m, n) of a target tr(D G D^T) taken apart: W_r = U_r U_r^T W.

    U are the eigenvectors of the second moments of the outputs, W G W^T, and `energies` its
    eigenvalues. The error is what is left out of them: it equals that of the truncated SVD of
    W S with G = S S^T (Wang et al., "SVD-LLM", 2024, section 3.2). Where m <= n nothing of side n
    is taken apart, W G W^T is; else (W S)^T W S = S^T W^T W S is, and U are r columns of W S.

    Where outputs count by R = L L^T as well, tr(R D G D^T), all of that holds of L^T W, and the
    left side is taken back by L^-T.

    matrix   W in the dtype that the sides are to have
    """

    def __init__(self, target: Target[Any], matrix: Tensor | None = None) -> None:
        self.target = target
        matrix = target.matrix if matrix is None else matrix
        self.root = None if target.rows is None else square_root(target.rows)
        wide = target.matrix
        if self.root is not None:
            wide = self.root.T @ wide
            matrix = wide.to(matrix.dtype)
        self.matrix = matrix
        m, n = matrix.shape
        self.turn: Tensor | None = None
        if m <= n:
            image = target.image if self.root is None else target.by_columns(wide)
            energies, self.basis = descending_eigh(image @ wide.T)
        else:
            half = square_root(_whole(target.columns, wide))
            square = target.square if self.root is None else wide.T @ wide
            energies, vectors = descending_eigh(half.T @ square @ half)
            self.turn = half @ vectors
        self.energies = energies.detach()
        self.norm = self.energies.sum()

    def leading(self, r: int) -> Tensor:
        """The eigenvectors (m, r) of the r largest energies, in float64."""
        if self.turn is None:
            return complete(self.basis[:, :r], r)
        # Householder's Q is orthogonal whatever it factors, where energies are rounding as well.
        basis: Tensor = torch.linalg.qr(self.matrix.to(torch.float64) @ self.turn[:, :r])[0]
        return basis

    def split(self, r: int) -> tuple[Tensor, Tensor]:
        """left (m, r) with orthogonal columns, right (r, n).

        The inner value U_j^T W x has the mean square energies[j], which is up to m times that of
        an output. Where it is larger it moves to the left side, so that what the dense layer
        could hold in float16 the inner values can.
        """
        wide = self.leading(r)
        basis = wide.to(self.matrix.dtype)
        share = growth(self.energies[:r], self.norm / self.matrix.shape[0]).to(self.matrix.dtype)
        right = (basis.T @ self.matrix) / share[:, None]
        if self.root is not None:
            basis = _unturned(self.root, wide).to(self.matrix.dtype)
        return basis * share, right

    def rel_error(self, left: Tensor, right: Tensor) -> float:
        """sqrt(tr(D G D^T) / tr(W G W^T)) for D = W - left right."""
        return self.target.rel_error_of(*(side.detach().double() for side in (left, right)))


def _whole(columns: Tensor | None, wide: Tensor) -> Tensor:
    return identity(wide.shape[1], wide) if columns is None else columns


def _unturned(root: Tensor, wide: Tensor) -> Tensor:
    """L^-T B, of least norm where L has no inverse."""
    if torch.equal(root, root.tril()):
        solved: Tensor = torch.linalg.solve_triangular(root.T, wide, upper=True)
        return solved
    least: Tensor = torch.linalg.pinv(root.T) @ wide
    return least


def growth(energies: Tensor, usual: Tensor) -> Tensor:
    """How many times the usual root mean square values of these energies have, at least one."""
    if usual <= 0:
        return torch.ones_like(energies)
    return (energies / usual).clamp(min=1).sqrt()


def square_root(gram: Tensor) -> Tensor:
    """S (n, n) with G = S S^T: a Cholesky factor, or where G is singular by its eigenvectors."""
    root: Tensor
    root, info = torch.linalg.cholesky_ex(gram)
    if not bool(info):
        return root
    values, vectors = descending_eigh(gram)
    return vectors * values.sqrt()
