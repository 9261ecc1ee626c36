"""The singular value decomposition of a rearranged weight, of few terms where that is enough."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import working_dtype
from tensorlrf.decomposition._kron_shapes import Pair
from tensorlrf.decomposition._solver import choose
from tensorlrf.decomposition._spectrum import frobenius_error
from tensorlrf.decomposition._svd import fit_svd, svd
from tensorlrf.factors import KroneckerSum, LowRank

LARGE = 1024
"""Rearranged matrices with more rows and columns than this are cut at few terms to see whether they
are within an error."""

FIRST = 8
"""Terms of the first cut that looks for an error."""


@dataclass(frozen=True)
class Sketch:
    """How a matrix is decomposed, see `svd`; `measure` whether the error of given terms is asked
    for (else it is NaN)."""

    method: str
    n_power_iter: int
    n_oversample: int
    generator: torch.Generator
    measure: bool = True

    def fit(self, matrix: Tensor, s: int | None, error: float | None) -> Fit[LowRank]:
        """For s terms, or the fewest within `error`."""
        if s is None and self.method == "auto" and min(matrix.shape) > LARGE:
            return self._within(matrix, error or 0.0) or self._fit(matrix, None, error)
        return self._fit(matrix, s, error)

    def _within(self, matrix: Tensor, error: float) -> Fit[LowRank] | None:
        """The fewest terms within `error` that a cut finds; None where it takes too many."""
        wide = working_dtype(matrix.dtype)
        shape = (int(matrix.shape[0]), int(matrix.shape[1]))
        s = FIRST
        while choose(shape, s, wide, torch.get_num_threads()).method == "krylov":
            fit = self._fit(matrix, s, None)
            if fit.error <= error:
                return self._fewer(matrix, fit, error)
            s *= 2
        return None

    def _fewer(self, matrix: Tensor, fit: Fit[LowRank], error: float) -> Fit[LowRank]:
        """A cut of `fit`, which is within `error`, to the fewest terms that still are."""
        left, right = fit.factors.left, fit.factors.right
        wide = matrix.to(working_dtype(matrix.dtype))
        below, s, reached = 0, fit.factors.rank, fit.error
        while s - below > 1:
            r = (below + s) // 2
            tried = frobenius_error(wide, left[:, :r].to(wide), right[:r].to(wide))
            if tried <= error:
                s, reached = r, tried
            else:
                below = r
        factors = LowRank(left[:, :s].contiguous(), right[:s].contiguous(), fit.factors.shape)
        reason = f"{s} terms are the fewest within {error} of {fit.factors.rank}, {fit.reason}"
        return Fit(factors, (reached,), True, reason)

    def _fit(self, matrix: Tensor, s: int | None, error: float | None) -> Fit[LowRank]:
        if not self.measure and s is not None:
            factors = svd(matrix, s, method=self.method, **self._options)
            return Fit(factors, (math.nan,), True, f"{s} terms")
        return fit_svd(matrix, s, error=error, method=self.method, **self._options)

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "n_power_iter": self.n_power_iter,
            "n_oversample": self.n_oversample,
            "random_state": self.generator,
        }


def as_terms(left: Tensor, right: Tensor, pair: Pair, kernel: tuple[int, ...]) -> KroneckerSum:
    """left (m1 n1, s), right (s, m2 n2 taps) as a sum of Kronecker products."""
    s = left.shape[1]
    a = left.T.reshape(s, *pair[0]).contiguous()
    return KroneckerSum(a, right.reshape(s, *pair[1], *kernel).contiguous())
