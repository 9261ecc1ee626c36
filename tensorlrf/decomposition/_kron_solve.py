"""The singular value decomposition of a rearranged weight, sketched where that is enough."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import working_dtype
from tensorlrf.decomposition._kron_shapes import Pair
from tensorlrf.decomposition._spectrum import frobenius_error
from tensorlrf.decomposition._svd import fit_svd
from tensorlrf.factors import KroneckerSum, LowRank

LARGE = 1024
"""Rearranged matrices with more rows and columns than this are sketched for a few terms."""

FIRST = 8
"""Terms of the first sketch that looks for an error."""


@dataclass(frozen=True)
class Sketch:
    """How a matrix is decomposed, see `svd`."""

    method: str
    n_power_iter: int
    n_oversample: int
    generator: torch.Generator

    def fit(self, matrix: Tensor, s: int | None, error: float | None) -> Fit[LowRank]:
        """For s terms, or the fewest within `error`."""
        least = min(matrix.shape)
        if self.method != "auto" or least <= LARGE:
            return self._fit(matrix, s, error, self.method)
        if s is not None:
            return self._fit(matrix, s, None, "randomized" if self._gains(s, least) else "auto")
        return self._within(matrix, error or 0.0) or self._fit(matrix, None, error, "auto")

    def _within(self, matrix: Tensor, error: float) -> Fit[LowRank] | None:
        """The fewest terms that a sketch finds within `error`; None where it takes too many."""
        s = FIRST
        while self._gains(s, min(matrix.shape)):
            fit = self._fit(matrix, s, None, "randomized")
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
        reason = f"{s} terms are the fewest within {error} that a sketch found"
        return Fit(factors, (reached,), True, reason)

    def _fit(self, matrix: Tensor, s: int | None, error: float | None, method: str) -> Fit[LowRank]:
        return fit_svd(
            matrix,
            s,
            error=error,
            method=method,
            n_power_iter=self.n_power_iter,
            n_oversample=self.n_oversample,
            random_state=self.generator,
        )

    @staticmethod
    def _gains(s: int, least: int) -> bool:
        # As for `svd`, with its 2 q + 2 products and p = 10.
        return 18 * (s + 10) < least


def as_terms(left: Tensor, right: Tensor, pair: Pair, kernel: tuple[int, ...]) -> KroneckerSum:
    """left (m1 n1, s), right (s, m2 n2 taps) as a sum of Kronecker products."""
    s = left.shape[1]
    a = left.T.reshape(s, *pair[0]).contiguous()
    return KroneckerSum(a, right.reshape(s, *pair[1], *kernel).contiguous())
