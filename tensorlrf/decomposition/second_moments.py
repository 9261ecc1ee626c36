"""Second moments of inputs, as a caller gives them, and the quadratic form that they stand for.

With X the inputs as columns and G = X X^T / N, the mean of |D x|^2 over the inputs is tr(D G D^T).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._input import as_tensor
from tensorlrf.decomposition._quadratic import Marginals, Product, Quadratic, Sides
from tensorlrf.decomposition.linalg.compact import Compact, Gram, about_mean, dense
from tensorlrf.decomposition.shrinkage import (
    ROUNDING,
    is_definite,
    is_spanned,
    least_amount,
    mean_eigenvalue,
    shrunk,
    spanning_amount,
)
from tensorlrf.errors import ArgumentError, ShapeError


@dataclass(frozen=True)
class SecondMoments(Quadratic):
    """M D = D G for moments G (n, n), checked, in float64 and times a power of four that brings
    them near one.

    given      G as it was given
    shrinkage  by how much it is shrunk, from 0 to 1
    """

    given: Gram
    shrinkage: float = 0.0

    @cached_property
    def gram(self) -> Gram:
        """Shrunk, so that every direction counts."""
        return shrunk(self.given, self.shrinkage)

    @cached_property
    def ridge(self) -> float:
        """What the plain norm counts in `gram`."""
        return self.shrinkage * mean_eigenvalue(self.given)

    def apply(self, matrix: Tensor) -> Tensor:
        product: Tensor = matrix @ self.given
        return product

    @property
    def sides(self) -> Sides:
        return None, self.given

    @property
    def marginals(self) -> Marginals:
        return None, dense(self.given)

    def shrunk(self) -> Quadratic:
        return Product(None, self.gram)

    @classmethod
    def known(cls, gram: Gram) -> SecondMoments:
        """Of moments (n, n) in float64 that are sums of squares in which every direction counts,
        and need no check. They are not changed."""
        if isinstance(gram, Compact):
            root = _root_of(float(gram.diagonal().max()))
            return cls(gram.times(1 / root).times(1 / root))
        root = _root_of(_largest(gram))
        return cls(gram if root == 1.0 else (gram / root).div_(root))


@dataclass(frozen=True)
class OutputMetric:
    """What an error e of the outputs costs, <e, R e>, for R (m, m), positive definite.

    With R the second moments of the gradients at the outputs, <D, R D G> is the error of the
    weight D in Kronecker-factored curvature (Martens & Grosse 2015).

    rows  R
    kept  its root, where that is kept
    """

    rows: Tensor
    kept: Tensor | None = None

    @property
    def root(self) -> Tensor:
        """L (m, m) with R = L L^T, lower triangular, in float64. Made anew each time unless it is
        kept: those of all layers would take twice the memory of R."""
        if self.kept is not None:
            return self.kept
        root: Tensor = torch.linalg.cholesky(self.rows.to(torch.float64))
        return root

    def rooted(self) -> OutputMetric:
        """The same with its root kept, for as long as one layer is at work."""
        return replace(self, kept=self.root)

    def turned(self, outputs: Tensor) -> Tensor:
        """L^T y for y (m, ...) in float64: outputs whose plain norm is the metric of these."""
        whole = outputs.to(torch.float64)
        return (self.root.T @ whole.reshape(len(whole), -1)).reshape(whole.shape)

    def energy(self, outputs: Tensor) -> float:
        """The sum of <y, R y> over the columns of y (m, ...)."""
        return float(self.turned(outputs).square().sum())

    def over(self, inputs: SecondMoments) -> Product:
        """The form R D G."""
        return Product(self.rows.to(torch.float64), inputs.given)


def second_moments(gram: Any, mean: Any, n: int, like: Tensor) -> SecondMoments:
    """`gram`, checked, about `mean` (n,) where that is given, and shrunk by the least amount.

    Raises ShapeError where it is not (n, n), ArgumentError where it is not finite, on another
    device than `like`, not symmetric or not positive semidefinite; likewise for a mean of another
    length or device, or one that the moments contradict: G - mean mean^T has no eigenvalue below
    zero.
    """
    matrix, root, slack = _symmetric(gram, n, like)
    if mean is None and is_spanned(matrix):  # by the one factorisation it is definite, too
        return SecondMoments(matrix)
    _refuse_indefinite(matrix, root, slack)
    if mean is None:
        return SecondMoments(matrix, spanning_amount(matrix))
    centred = _about(mean, gram, matrix, root)
    return SecondMoments(centred, least_amount(centred))


def check_gram(gram: Any, n: int, like: Tensor) -> tuple[Tensor, float]:
    """`gram` as a checked symmetric (n, n) float64 matrix on the device of `like`, divided by the
    square of a power of two that brings it near one; and that power."""
    matrix, root, slack = _symmetric(gram, n, like)
    _refuse_indefinite(matrix, root, slack)
    return matrix, root


def _symmetric(gram: Any, n: int, like: Tensor) -> tuple[Tensor, float, float]:
    """The same before it is known to be positive semidefinite, and how far below zero rounding may
    leave its eigenvalues."""
    given = as_tensor(gram, "gram")
    if tuple(given.shape) != (n, n):
        raise ShapeError(
            f"gram has shape {tuple(given.shape)}; the weight as a matrix has {n} columns, so the "
            f"second moments X X^T / N of its inputs are ({n}, {n})"
        )
    if given.device != like.device:
        raise ArgumentError(
            f"gram is on {given.device} but the weight is on {like.device}; move it with .to()"
        )
    matrix = given.detach().to(torch.float64)
    largest = _largest(matrix)
    if largest == 0.0:
        return matrix, 1.0, 0.0
    root = _root_of(largest)
    if root != 1.0:
        matrix = (matrix / root).div_(root)
    # Two products with a vector of signs, which no pattern of G is likely to be orthogonal to,
    # tell symmetry from its absence; G - G^T itself would read a large matrix across its rows.
    signs = torch.ones(n, dtype=torch.float64, device=matrix.device)
    signs[torch.arange(n, device=matrix.device) * 7919 % 104729 % 3 == 0] = -1.0
    forward, backward = matrix @ signs, matrix.T @ signs
    scale = largest / root / root
    skew = float((forward - backward).abs().max())
    if skew > 1e-3 * scale * n**0.5:
        raise ArgumentError(
            f"gram is not symmetric (its rows and columns differ by {skew:.3g} in a product, with "
            f"{scale:.3g} its largest entry, both over {root:.3g}^2); pass X @ X.T / N"
        )
    if skew > 1e-13 * scale * n**0.5:
        matrix = (matrix + matrix.T) / 2
    slack = _slack(matrix, given.dtype)
    if float(matrix.diagonal().min()) < -slack:
        raise ArgumentError(
            "gram has a negative entry on its diagonal; second moments X X^T / N cannot have one"
        )
    return matrix, root, slack


def _largest(matrix: Tensor) -> float:
    """The largest absolute value, without a copy of the matrix."""
    low, high = matrix.aminmax()
    return max(-float(low), float(high))


def _root_of(largest: float) -> float:
    """A power of two by whose square a matrix comes near one: squares of the largest float64
    numbers have room then, and the smallest do not vanish."""
    return float(2.0 ** (math.frexp(largest)[1] // 2)) if largest > 0 else 1.0


def _refuse_indefinite(matrix: Tensor, root: float, slack: float) -> None:
    if (least := _negative(matrix, slack)) is not None:
        raise ArgumentError(
            f"gram is indefinite: its most negative eigenvalue is {least * root * root:.3g}, and "
            f"second moments X X^T / N have none below zero (their rounding may leave "
            f"{-slack * root * root:.3g}); pass the moments of inputs, or clip it: values, vectors "
            "= torch.linalg.eigh(gram); gram = (vectors * values.clamp(min=0)) @ vectors.T"
        )


def _slack(matrix: Tensor, dtype: torch.dtype) -> float:
    """How far below zero rounding may leave an eigenvalue: an entry is off by eps sqrt(G_ii G_jj),
    a matrix of these by eps tr(G), and long sums by a few times that."""
    eps = max(float(torch.finfo(dtype).eps), ROUNDING)
    return 8 * eps * float(matrix.diagonal().clamp(min=0).sum())


def _negative(matrix: Tensor, slack: float) -> float | None:
    """The least eigenvalue where it is below -slack; else None, mostly without knowing it."""
    if is_definite(matrix, slack):
        return None
    least = float(torch.linalg.eigvalsh(matrix)[0])
    return least if least < -slack else None


def _about(mean: Any, gram: Any, matrix: Tensor, root: float) -> Tensor:
    """The checked moments about their mean."""
    n = len(matrix)
    mu = as_tensor(mean, "mean", min_order=1)
    if tuple(mu.shape) != (n,):
        raise ShapeError(f"mean has shape {tuple(mu.shape)}; the mean input is ({n},)")
    if mu.device != matrix.device:
        raise ArgumentError(
            f"mean is on {mu.device} but the weight is on {matrix.device}; move it with .to()"
        )
    mu = mu.detach().to(torch.float64) / root
    variances = matrix.diagonal() - mu.square()
    if float(variances.min()) < -1e-6 * float(matrix.diagonal().abs().max()):
        raise ArgumentError(
            "mean contradicts gram: a variance G_ii - mean_i^2 is negative; give both over the "
            "same inputs"
        )
    dtypes = [as_tensor(given, min_order=1).dtype for given in (gram, mean)]
    centred = about_mean(matrix, mu, max(float(torch.finfo(dtype).eps) for dtype in dtypes))
    slack = max(_slack(matrix, dtype) for dtype in dtypes)
    if (least := _negative(centred, slack)) is not None:
        raise ArgumentError(
            f"mean contradicts gram: G - mean mean^T has the eigenvalue {least * root * root:.3g}, "
            "and a covariance has none below zero; give both over the same inputs"
        )
    return centred
