"""What the block formats share: a weight as a scaled matrix, and how far off factors are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._fit_or_plain import Judge
from tensorlrf.decomposition._input import as_tensor, working_dtype
from tensorlrf.decomposition._metric import input_metric
from tensorlrf.decomposition.linalg._gram import scale_of
from tensorlrf.decomposition.linalg._spectrum import ratio, squared_norm
from tensorlrf.errors import ShapeError, UnsupportedError
from tensorlrf.factors import Factors


@dataclass(frozen=True)
class Weight:
    """A matrix W (m, n) to be approximated, in the working dtype and divided by `scale`.

    Judges approximations by their relative Frobenius error or, where moments of the inputs are
    given, by the relative error of the outputs.
    """

    matrix: Tensor
    scale: float
    dtype: torch.dtype
    judge: Judge[Any] | None

    @property
    def gram(self) -> Tensor | None:
        """The moments (n, n) in which fits are made."""
        return None if self.judge is None else self.judge.metric.gram

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.matrix.shape[0]), int(self.matrix.shape[1])

    @property
    def root(self) -> float:
        """What each of two factors is multiplied by to undo the scaling."""
        return math.sqrt(self.scale)

    @property
    def floor(self) -> float:
        """The smallest relative error that can be told from rounding."""
        return float(torch.finfo(self.matrix.dtype).eps)

    def rel_error(self, factors: Factors) -> float:
        """True relative error of `factors` as they are returned, in float64."""
        if self.judge is not None:
            return self.judge.of(factors).error
        dense = factors.detach().to(self.matrix.dtype).to_dense() / self.scale
        squared = squared_norm(self.matrix - dense)
        # Factors that overflow in the dtype of the weight are infinitely far off.
        return ratio(squared, self.energy) if math.isfinite(squared) else math.inf

    def loss(self, fit: Fit[Any]) -> float:
        """By what fits of one budget are compared: the error, or the loss of the outputs."""
        return fit.error if self.judge is None else self.judge.of(fit.factors).loss

    @cached_property
    def energy(self) -> float:
        """tr(W W^T) of the scaled W."""
        return squared_norm(self.matrix)


def as_weight(tensor: Any, gram: Any, who: str) -> Weight:
    """`tensor` as a checked matrix, with the second moments of its inputs where they are given.

    Raises UnsupportedError for more than two modes, ShapeError and ArgumentError for what cannot
    be decomposed.
    """
    checked = as_tensor(tensor)
    if checked.ndim != 2:
        raise UnsupportedError(
            f"{who} takes a matrix (out, in), got a tensor of shape {tuple(checked.shape)}; use "
            "svd, kron or tucker for a conv kernel, or reshape it to (out, in * kh * kw)"
        )
    judge: Judge[Any] | None = None
    if gram is not None:
        judge = Judge(checked, input_metric(gram, None, int(checked.shape[1]), checked))
    work = checked.detach().to(working_dtype(checked.dtype))
    scale = scale_of(work)
    # A copy in rows, so that equal values give equal factors however they lie in memory.
    matrix = (work if scale == 1.0 else work / scale).contiguous()
    return Weight(matrix, scale, checked.dtype, judge)


def check_pair(
    value: Any, name: str, low: int, high: tuple[int, int], what: str
) -> tuple[int, int]:
    """An int or a pair of ints, each between `low` and what the matrix allows."""
    pair = (value, value) if isinstance(value, int) else value
    whole = isinstance(pair, (tuple, list)) and len(pair) == 2
    if not whole or any(isinstance(n, bool) or not isinstance(n, int) for n in pair):
        raise ShapeError(f"{name}={value!r} must be an int or a pair of ints, {what}")
    first, second = int(pair[0]), int(pair[1])
    if not (low <= first <= high[0] and low <= second <= high[1]):
        raise ShapeError(
            f"{name}={value!r} does not fit: {what}, so from {low} to {high[0]} along the rows and "
            f"from {low} to {high[1]} along the columns"
        )
    return first, second
