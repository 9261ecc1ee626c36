"""The fit in the metric of the inputs, or the plain factors where these serve better."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._metric import Metric
from tensorlrf.decomposition.linalg._gram import scale_of
from tensorlrf.decomposition.linalg._spectrum import ratio
from tensorlrf.factors import Factors

F = TypeVar("F", bound=Factors)

Sides = tuple[Tensor, Tensor]
"""left (m, r) and right (r, n), whose product is what factors stand for."""

CANCELLED = 1e-10
"""A square that is multiplied out is known to float64's rounding of what cancels in it: below this
share of the whole the residual itself is taken."""


class Verdict(NamedTuple):
    """On factors as they are, after their cast.

    error   relative error of the outputs, in the moments as they were given
    loss    squared error in the shrunk moments, by which fits are chosen; Inf where factors
            overflow
    """

    error: float
    loss: float


class Judge(Generic[F]):
    """True errors of factors of one weight (m, ...), seen as W (m, n), in a metric (n, n).

    sides   of factors that have them: with r below n the outputs take less that way
    scale   over which W is taken
    """

    def __init__(
        self,
        weight: Tensor,
        metric: Metric,
        sides: Callable[[F], Sides] | None = None,
        scale: float | None = None,
    ) -> None:
        wide = weight.detach().to(torch.float64)
        self.scale = scale_of(wide) if scale is None else scale
        self.matrix = (wide / self.scale).reshape(weight.shape[0], -1)
        self.metric = metric
        self.sides = sides
        self.eps = float(torch.finfo(weight.dtype).eps)

    @cached_property
    def moments(self) -> Tensor:
        """W G, (m, n)."""
        return self.metric.times_given(self.matrix, self.scale)

    @cached_property
    def square(self) -> Tensor:
        """W^T W, (n, n)."""
        return self.matrix.T @ self.matrix

    @cached_property
    def energy(self) -> float:
        """tr(W G W^T)."""
        m, n = self.matrix.shape
        if m > n and self.metric.outputs is None:
            return float((self.square * self.metric.given).sum())
        return float((self.moments * self.matrix).sum())

    @property
    def rounding(self) -> float:
        """A loss that the cast of factors may bring about."""
        whole = self.metric.ridge * float(self.matrix.square().sum())
        return (4 * self.eps) ** 2 * ((1 - self.metric.shrinkage) * self.energy + whole)

    def of(self, factors: F) -> Verdict:
        """The verdict on factors of the weight as it was given."""
        if self.sides is not None:
            return self._of_sides(*self.sides(factors))
        dense = factors.detach().to(torch.float64).to_dense() / self.scale
        return self._of_residual(self.matrix - dense.reshape(self.matrix.shape))

    def _of_residual(self, residual: Tensor) -> Verdict:
        squared = float((residual @ self.metric.given * residual).sum())
        return self._verdict(squared, residual)

    def _of_sides(self, left: Tensor, right: Tensor) -> Verdict:
        left = left.detach().to(torch.float64) / self.scale
        right = right.detach().to(torch.float64)
        seen = right @ self.metric.given  # (r, n)
        cross = (left.T @ self.matrix * seen).sum()
        square = ((left.T @ left) @ seen * right).sum()
        squared = float(self.energy - 2 * cross + square)
        if squared < CANCELLED * self.energy:
            return self._of_residual(self.matrix - left @ right)
        shrinks = self.metric.shrinkage > 0
        return self._verdict(squared, self.matrix - left @ right if shrinks else None)

    def _verdict(self, squared: float, residual: Tensor | None) -> Verdict:
        loss = (1 - self.metric.shrinkage) * max(squared, 0.0)
        if residual is not None:
            loss += self.metric.ridge * float(residual.square().sum())
        if not math.isfinite(loss):
            return Verdict(math.inf, math.inf)
        return Verdict(ratio(squared, self.energy), loss)


def fit_or_plain(
    judge: Judge[F], plain: Callable[[], F], fit: Callable[[], Fit[F]], least: float = 0.0
) -> Fit[F]:
    """The factors of `fit` with their true error, or the plain ones where their loss is no larger.

    `errors` of what `fit` gives are those on the way, to which that of the result is added. With
    `least`, a loss in the shrunk moments below which no factors are, `plain` is not called for
    where the fit comes near it. A fit that linear algebra gives up on is none.
    """
    shrinkage = judge.metric.shrinkage
    try:
        fitted = fit()
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        usual = plain()
        reason = f"the plain factors, the fit to the inputs failed ({error})"
        return Fit(usual, (judge.of(usual).error,), False, reason, shrinkage)
    served = judge.of(fitted.factors)
    fitted = replace(fitted, errors=(*fitted.errors, served.error), shrinkage=shrinkage)
    if least > 0 and served.loss <= least * (1 + 1e-3) + judge.rounding:
        return fitted
    usual = plain()
    verdict = judge.of(usual)
    if served.loss < verdict.loss:
        return fitted
    errors = (*fitted.errors[:-1], verdict.error)
    reason = f"{fitted.reason}, none better than the plain factors"
    return replace(fitted, factors=usual, errors=errors, reason=reason)
