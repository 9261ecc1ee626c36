"""What a decomposition minimises, over the factors A of a weight W: <W - A, M (W - A)>."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._options import check_moments
from tensorlrf.decomposition._quadratic import PLAIN, Marginals, Product, Quadratic
from tensorlrf.decomposition._source import DenseSource, Source
from tensorlrf.decomposition.linalg._gram import identity, scale_of
from tensorlrf.decomposition.linalg._solve import conjugate_gradients
from tensorlrf.decomposition.linalg._spectrum import ratio, squared_norm
from tensorlrf.decomposition.linalg.compact import dense
from tensorlrf.decomposition.second_moments import second_moments
from tensorlrf.errors import ArgumentError, UnsupportedError
from tensorlrf.factors import Factors

F = TypeVar("F", bound=Factors)

Sides = tuple[Tensor, Tensor]
"""left (m, r) and right (r, n), whose product is what factors stand for."""

CANCELLED = 1e-10
"""A square that is multiplied out is known to float64's rounding of what cancels in it: below this
share of the whole the residual itself is taken."""


class Verdict(NamedTuple):
    """On factors as they are, after their cast.

    error   relative, in the form as it was given
    loss    squared, in the shrunk form, by which fits are chosen; Inf where factors overflow
    """

    error: float
    loss: float


class Target(Generic[F]):
    """A weight (m, ...), seen as W (m, n) over `scale`, and the quadratic form M of what is left.

    given   M as it was given: in it errors are told
    form    M', in which every direction counts that should: in it fits are made, and chosen
    sides   of factors that have them: with r below n what is left takes less that way

    Nothing is computed before it is asked for.
    """

    def __init__(
        self,
        source: Source,
        given: Quadratic = PLAIN,
        sides: Callable[[F], Sides] | None = None,
    ) -> None:
        self.source, self.given, self.sides = source, given, sides

    @classmethod
    def of(
        cls,
        tensor: Tensor,
        gram: Any = None,
        mean: Any = None,
        *,
        sides: Callable[[F], Sides] | None = None,
        scale: float | None = None,
    ) -> Target[F]:
        """Of a checked `tensor` (m, ...) and what a caller gives beside it.

        gram   second moments (n, n) of the inputs, or a `Quadratic`; None for the sum of squares
        mean   (n,) of the same inputs, about which the moments are then taken
        scale  over which W is taken, where that is known

        Raises what `second_moments` does, and ArgumentError for a mean without moments.
        """
        source = DenseSource(tensor, scale)
        check_moments(gram, mean)
        if gram is None:
            return cls(source, PLAIN, sides)
        if isinstance(gram, Quadratic):
            if mean is not None:
                raise ArgumentError("mean= goes with second moments, not with a form made of them")
            return cls(source, gram, sides)
        return cls(source, second_moments(gram, mean, source.shape[1], tensor), sides)

    # ---- the weight ------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int]:
        return self.source.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of the weight, and so of its factors."""
        return self.source.dtype

    @property
    def scale(self) -> float:
        """What W is to be multiplied by to be the weight."""
        return self.source.scale

    @property
    def root(self) -> float:
        """What each of two factors of W is multiplied by to be one of the weight."""
        return math.sqrt(self.scale)

    @property
    def floor(self) -> float:
        """The smallest relative error that can be told from rounding."""
        return float(torch.finfo(self.work.dtype).eps)

    @property
    def work(self) -> Tensor:
        """W (m, n) in the working dtype."""
        return self.source.work

    @property
    def matrix(self) -> Tensor:
        """W (m, n) in float64."""
        return self.source.matrix

    def with_rows(self, matrix: Tensor) -> Target[Any]:
        """The same form for W with rows in another order, zeros among them or behind it: columns
        that are added are inputs that are always zero. `matrix` (m', n'), over the same scale."""
        gram, more = self.gram, matrix.shape[1] - self.shape[1]
        form = PLAIN if gram is None else Product(None, pad(gram, (0, more, 0, more)))
        return Target(DenseSource(matrix, 1.0), form)

    # ---- the form --------------------------------------------------------------------------------

    @property
    def is_plain(self) -> bool:
        """Whether it is the sum of squares."""
        sides = self.given.sides
        return sides is not None and sides[0] is None and sides[1] is None

    @cached_property
    def form(self) -> Quadratic:
        """M'."""
        return self.given.shrunk()

    @property
    def shrinkage(self) -> float | None:
        """How far M was drawn towards the plain norm; None for the plain norm itself."""
        return None if self.is_plain else self.given.shrinkage

    @property
    def marginals(self) -> Marginals:
        """What M' is near to, see `Quadratic.marginals`."""
        return self.form.marginals

    @property
    def rows_apart(self) -> bool:
        """Whether M' D = D C for some C: then rows of D do not meet, and what is sought in one of
        them is sought in all by the same normal matrix."""
        sides = self.given.sides
        return sides is not None and sides[0] is None

    @property
    def rows(self) -> Tensor | None:
        """R (m, m) where M' D = R D C, None for the identity; C are the `columns`.

        Raises UnsupportedError for any other form.
        """
        return None if self.rows_apart else self._product(self.given)[0]

    @property
    def columns(self) -> Tensor | None:
        """C (n, n)."""
        return self._product(self.form)[1]

    def by_columns(self, matrix: Tensor) -> Tensor:
        """D C for D (m, n), whatever C is held as."""
        if self.form.sides is None or self.form.sides[1] is None:
            return matrix
        product: Tensor = matrix @ self.form.sides[1]
        return product

    @property
    def gram(self) -> Tensor | None:
        """G (n, n) where M' D = D G, None for the sum of squares.

        Raises UnsupportedError for any other form.
        """
        if self.rows is not None:
            raise UnsupportedError(
                "this decomposition is fitted to second moments of inputs, a form D G of what is "
                "left; other forms are served by svd, kron, blr, hierarchical and trains"
            )
        return self.columns

    @property
    def moments(self) -> Tensor:
        """G (n, n) itself, the identity for the sum of squares."""
        return identity(self.shape[1], self.matrix) if self.gram is None else self.gram

    def _product(self, form: Quadratic) -> Marginals:
        if form.sides is None:
            raise UnsupportedError(
                "this decomposition is fitted to second moments of inputs, or to a form R D C of "
                "what is left; other forms are served by svd, kron and trains"
            )
        rows, columns = form.sides
        return rows, None if columns is None else dense(columns)

    def apply(self, matrix: Tensor) -> Tensor:
        """M' D for D (m, n), float64."""
        return self.form.apply(matrix)

    def inner(self, one: Tensor, other: Tensor) -> float:
        """<A, M' B> for A and B (m, n)."""
        return float((self.apply(other) * one).sum())

    def improved(
        self,
        block: Tensor,
        whole: Callable[[Tensor], Tensor],
        adjoint: Callable[[Tensor], Tensor],
        precondition: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Some steps of conjugate gradients from a block x of factors towards the least
        <W - L x, M' (W - L x)>, all other blocks held: for a block that no closed form gives.

        whole      the linear map L of x to a matrix (m, n)
        adjoint    L^T, of a matrix to what has the shape of x
        """

        def normal(x: Tensor) -> Tensor:
            return adjoint(self.apply(whole(x)))

        residual = adjoint(self.image) - normal(block)
        return conjugate_gradients(normal, residual, block, precondition)

    @cached_property
    def given_image(self) -> Tensor:
        """M W, (m, n)."""
        return self.given.apply(self.matrix)

    @cached_property
    def image(self) -> Tensor:
        """M' W, (m, n)."""
        a, image = self.given.shrinkage, self.given_image
        return image if a == 0.0 else (image * (1 - a)).add_(self.matrix, alpha=self.given.ridge)

    @cached_property
    def norm(self) -> float:
        """<W, M' W>."""
        return float((self.image * self.matrix).sum())

    @cached_property
    def square(self) -> Tensor:
        """W^T W, (n, n)."""
        return self.source.gram()

    @cached_property
    def energy(self) -> float:
        """<W, M W>; for the plain norm in the working dtype."""
        if self.is_plain:
            return squared_norm(self.work)
        m, n = self.shape
        rows, columns = self.given.sides or (None, None)
        if m > n and rows is None and columns is not None:
            return float((self.square * dense(columns)).sum())
        return float((self.given_image * self.matrix).sum())

    # ---- what is left ----------------------------------------------------------------------------

    def rel_error(self, residual: Tensor) -> float:
        """sqrt(<D, M' D> / <W, M' W>) for the residual D (m, n), float64."""
        return ratio(self.inner(residual, residual), self.norm)

    def rel_error_of(self, left: Tensor, right: Tensor) -> float:
        """The same for D = W - left right, with left (m, r) and right (r, n), float64."""
        squared = self._squared(self.form, left, right, self.norm)
        if squared is None:
            return self.rel_error(self.source.residual(left @ right))
        return ratio(squared, self.norm)

    def of_factors(self, factors: F) -> Verdict:
        """The verdict on factors of the weight as it was given."""
        if self.is_plain:
            return self._plain_verdict(factors)
        if self.sides is not None:
            return self._of_sides(*self.sides(factors))
        dense = factors.detach().to(torch.float64).to_dense() / self.scale
        return self._of_residual(self.source.residual(dense.reshape(self.shape)))

    def error(self, factors: F) -> float:
        """True relative error of factors as they are."""
        return self.of_factors(factors).error

    def loss(self, fit: Fit[F]) -> float:
        """By what fits are compared: the error of a plain one, else the loss in M'."""
        return fit.error if self.is_plain else self.of_factors(fit.factors).loss

    @property
    def rounding(self) -> float:
        """A loss that the cast of factors may bring about."""
        eps = float(torch.finfo(self.dtype).eps)
        whole = self.given.ridge * float(self.matrix.square().sum())
        return (4 * eps) ** 2 * ((1 - self.given.shrinkage) * self.energy + whole)

    def _plain_verdict(self, factors: F) -> Verdict:
        """In the working dtype, of the residual itself."""
        dense = factors.detach().to(self.work.dtype).to_dense() / self.scale
        squared = squared_norm(self.work - dense.reshape(self.shape))
        # Factors that overflow in the dtype of the weight are infinitely far off.
        if not math.isfinite(squared):
            return Verdict(math.inf, math.inf)
        return Verdict(ratio(squared, self.energy), squared)

    def _of_residual(self, residual: Tensor) -> Verdict:
        squared = float((self.given.apply(residual) * residual).sum())
        return self._verdict(squared, residual)

    def _of_sides(self, left: Tensor, right: Tensor) -> Verdict:
        left, right = (side.detach().to(torch.float64) for side in (left, right))
        if self.scale != 1.0:
            # By so much that squares of either side stay away from overflow, whichever is large.
            size = scale_of(left)
            left, right = left / size, right * (size / self.scale)
        squared = self._squared(self.given, left, right, self.energy)
        if squared is None:
            return self._of_residual(self.source.residual(left @ right))
        shrinks = self.given.shrinkage > 0
        return self._verdict(squared, self.source.residual(left @ right) if shrinks else None)

    def _squared(self, form: Quadratic, left: Tensor, right: Tensor, whole: float) -> float | None:
        """<D, M D> for D = W - left right, multiplied out; None where that cancels, or M is no
        product of which sides could be taken by themselves."""
        if form.sides is None:
            return None
        rows, columns = form.sides
        seen = right if columns is None else right @ columns  # (r, n)
        turned = left if rows is None else rows @ left  # (m, r)
        cross = (self.source.contract(turned, 0) * seen).sum()
        square = ((left.T @ turned) @ seen * right).sum()
        squared = float(whole - 2 * cross + square)
        return None if squared < CANCELLED * whole else squared

    def _verdict(self, squared: float, residual: Tensor | None) -> Verdict:
        loss = (1 - self.given.shrinkage) * max(squared, 0.0)
        if residual is not None:
            loss += self.given.ridge * float(residual.square().sum())
        if not math.isfinite(loss):
            return Verdict(math.inf, math.inf)
        return Verdict(ratio(squared, self.energy), loss)
