"""What non-negative decompositions work on: a tensor made ready, iterates, and the way back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tensorlrf.decomposition._input import working_dtype
from tensorlrf.decomposition.linalg._gram import scale_of
from tensorlrf.decomposition.linalg._spectrum import ratio
from tensorlrf.decomposition.linalg.multilinear._columns import spread_weights
from tensorlrf.decomposition.linalg.multilinear._mttkrp import CutTensor
from tensorlrf.decomposition.linalg.multilinear._residual import norm_of, square_residual
from tensorlrf.decomposition.nonnegative._hals import MOST_ROUNDS
from tensorlrf.factors import CPFactors, LowRank
from tensorlrf.factors.algebra import khatri_rao


@dataclass(frozen=True)
class Columns:
    """A model of r terms: columns (n_k, r) of unit length in the working dtype, weights (r,)
    float64."""

    factors: tuple[Tensor, ...]
    weights: Tensor

    @property
    def balanced(self) -> list[Tensor]:
        """Factors that have the weights, each an equal share."""
        share = self.weights ** (1 / len(self.factors))
        return [u * share.to(u.dtype) for u in self.factors]


@dataclass(frozen=True)
class Data:
    """A tensor over `scale`, a power of four in what `of` makes, in the working dtype; `dtype` is
    that of the user."""

    cut: CutTensor
    scale: float
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Data:
        """Of a checked tensor, which is copied only where it must be."""
        data, scale = tensor.detach().to(working_dtype(tensor.dtype)), scale_of(tensor)
        data = data.contiguous() if scale == 1.0 else (data / scale).contiguous()
        return cls.scaled(data, scale, tensor.dtype)

    @classmethod
    def scaled(cls, data: Tensor, scale: float, dtype: torch.dtype) -> Data:
        """Of a contiguous tensor in the working dtype, over `scale` by now."""
        return cls(CutTensor.of(data), scale, dtype)

    @property
    def tensor(self) -> Tensor:
        return self.cut.blocks.reshape(self.cut.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of factors: their rows."""
        return self.cut.shape

    @cached_property
    def _square(self) -> float:
        return norm_of(self.cut) ** 2

    @property
    def square(self) -> float:
        """The sum of squares."""
        return self._square

    def seen(self, mode: int, factor: Tensor) -> Tensor:
        """A factor (n_mode, c) as the tensor is contracted with it."""
        return factor

    def grown(self, mode: int, rhs: Tensor) -> Tensor:
        """The tensor contracted along all modes but this, with the rows of its factor."""
        return rhs

    def rounds(self, n: int, r: int) -> int:
        """Rounds over the columns (n, r) of a factor that a contraction of the tensor is worth."""
        return max(1, min(MOST_ROUNDS, self.tensor.numel() // (4 * n * r)))

    def true_error(self, factors: Sequence[Tensor], weights: Tensor) -> float:
        """Relative error of a model, of the residual itself; absolute for a zero tensor."""
        return ratio(square_residual(self.cut, factors, weights), self.square)

    def tells(self, square: float) -> bool:
        """Whether a squared residual that is a difference of such sums has digits enough."""
        return square > CANCELLED[self.tensor.dtype] * self.square

    def error(self, square: float, columns: Columns) -> float:
        """The same where that is known to be `square`, but for what has cancelled."""
        if self.tells(square):
            return ratio(max(square, 0.0), self.square)
        return self.true_error(columns.factors, columns.weights)

    def factors(self, columns: Columns) -> CPFactors:
        """In the dtype and at the scale of the user's tensor, weights from the largest down."""
        order = columns.weights.argsort(descending=True, stable=True)
        weights = columns.weights[order] * self.scale
        factors = [u[:, order] for u in columns.factors]
        factors, weights = spread_weights(factors, weights, self.dtype, {})
        return CPFactors(weights.to(self.dtype), tuple(u.to(self.dtype) for u in factors))

    def low_rank(self, columns: Columns) -> LowRank:
        """Of a matrix; each factor has half of the weights, as a root."""
        root = (columns.weights * self.scale).sqrt()
        left, right = (u * root.to(u.dtype) for u in columns.factors)
        return LowRank(left.to(self.dtype), right.T.contiguous().to(self.dtype))

    def error_of(self, factors: Sequence[Tensor], weights: Tensor | None = None) -> float:
        """Of a model of the user's tensor, after the cast; one that overflows is infinitely far."""
        work = [u.to(self.tensor.dtype) for u in factors]
        ones = work[0].new_ones(work[0].shape[1]) if weights is None else weights
        error = self.true_error(work, ones.to(torch.float64) / self.scale)
        return error if not math.isnan(error) else math.inf


CANCELLED = {torch.float32: 1e-3, torch.float64: 1e-9}
"""Share of the squared norm below which a difference of such numbers has too few digits: a rounding
of the dtype in each of its terms, of which many average out, is then some 1e-5 of it."""


def gram(columns: Tensor) -> Tensor:
    """(r, r) float64 of columns (n, r)."""
    wide = columns.to(torch.float64)
    return wide.T @ wide


def inner_products(data: Data, factors: Sequence[Tensor]) -> Tensor:
    """Of the tensor with each term of a model without weights, (r,) float64."""
    seen = [data.seen(k, u) for k, u in enumerate(factors)]
    inner = khatri_rao(tuple([seen[k] for k in data.cut.cut.inner]))
    return (data.cut.contract_outer(seen) * inner).sum(0, dtype=torch.float64)
