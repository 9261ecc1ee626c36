"""Quadratic forms <D, M D> of matrices D (m, n), as maps M that are applied.

M is self-adjoint and positive semidefinite. A decomposition minimises such a form of what its
factors leave of a weight: the sum of squares, or the mean square of the outputs, or a sum with
weights, in which what is not known counts for nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from tensorlrf.decomposition.linalg.compact import Gram, dense

Marginals = tuple[Tensor | None, Tensor | None]
"""R (m, m) and C (n, n), either None for the identity."""

Sides = tuple[Tensor | None, Gram | None]
"""The same, with C in any form."""


class Quadratic(ABC):
    """M as it was given, in float64: in it errors are told."""

    shrinkage: float = 0.0
    """a, by how much M is drawn towards the plain norm in `shrunk`, from 0 to 1."""

    @property
    def ridge(self) -> float:
        """What the plain norm counts in `shrunk`, (1 - a) M + ridge I."""
        return 0.0

    @abstractmethod
    def apply(self, matrix: Tensor) -> Tensor:
        """M D (m, n) for D (m, n)."""

    @property
    def sides(self) -> Sides | None:
        """R and C where M D = R D C; None where M is no such product."""
        return None

    @property
    @abstractmethod
    def marginals(self) -> Marginals:
        """R and C such that R D C is M D up to a factor where M is such a product, and near it
        elsewhere: partial traces of M, which precondition systems in it."""

    def shrunk(self) -> Quadratic:
        """M', in which every direction counts that should: in it fits are made, and chosen."""
        return self


@dataclass(frozen=True)
class Product(Quadratic):
    """M D = R D C with R (m, m) and C (n, n), either None for the identity.

    With C = X X^T / N of inputs X the mean of |D x|^2 over them is tr(D C D^T); with R in front the
    outputs count by what is made of them.
    """

    rows: Tensor | None = None
    columns: Gram | None = None

    def apply(self, matrix: Tensor) -> Tensor:
        if self.columns is not None:
            matrix = matrix @ self.columns
        return matrix if self.rows is None else self.rows @ matrix

    @property
    def sides(self) -> Sides:
        return self.rows, self.columns

    @property
    def marginals(self) -> Marginals:
        return self.rows, None if self.columns is None else dense(self.columns)


PLAIN = Product()
"""The sum of squares."""


@dataclass(frozen=True)
class Elementwise(Quadratic):
    """M D = V * D for weights V (m, n), none below zero; zeros and ones are a mask."""

    weights: Tensor

    def apply(self, matrix: Tensor) -> Tensor:
        return self.weights * matrix

    @property
    def marginals(self) -> Marginals:
        return self.weights.sum(1).diag(), self.weights.sum(0).diag()
