"""The singular value decomposition of a rearranged weight, of few terms where that is enough."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import working_dtype
from tensorlrf.decomposition._search import search, smallest_within
from tensorlrf.decomposition.kron._shapes import Pair
from tensorlrf.decomposition.linalg._solver import choose
from tensorlrf.decomposition.linalg._spectrum import frobenius_error
from tensorlrf.decomposition.linalg._truncation import Scaled, SVDSolver
from tensorlrf.factors import KroneckerSum, LowRank

LARGE = 1024
"""Rearranged matrices with more rows and columns than this are cut at few terms to see whether they
are within an error."""

FIRST = 8
"""Terms of the first cut that looks for an error."""


@dataclass(frozen=True)
class Cutter:
    """How rearrangements of a weight are cut.

    largest   the largest entry, in size, of the weight
    measure   whether the error of given terms is asked for (else it is NaN)
    """

    svd: SVDSolver
    largest: float
    measure: bool = True

    def fit(self, matrix: Tensor, s: int | None, error: float | None) -> Fit[LowRank]:
        """For s terms, or the fewest within `error`."""
        if s is not None:
            return self._of(matrix, s)
        if self.svd.solver == "auto" and min(matrix.shape) > LARGE:
            fit = self._within(matrix, error or 0.0)
            if fit is not None:
                return fit
        return self._fewest(matrix, error or 0.0)

    def _within(self, matrix: Tensor, error: float) -> Fit[LowRank] | None:
        """The fewest terms within `error` that a cut finds; None where it takes too many."""
        wide = working_dtype(matrix.dtype)
        shape = (int(matrix.shape[0]), int(matrix.shape[1]))
        s = FIRST
        while choose(shape, s, wide, torch.get_num_threads()).solver == "krylov":
            fit = self._of(matrix, s)
            if fit.error <= error:
                return self._fewer(matrix, fit, error)
            s *= 2
        return None

    def _fewer(self, matrix: Tensor, fit: Fit[LowRank], error: float) -> Fit[LowRank]:
        """A cut of `fit`, which is within `error`, to the fewest terms that still are."""
        left, right = fit.factors.left, fit.factors.right
        wide = matrix.to(working_dtype(matrix.dtype))

        def cut(s: int) -> Fit[LowRank]:
            some = left[:, :s], right[:s]
            error = frobenius_error(wide, *(side.to(wide) for side in some))
            return replace(fit, factors=LowRank(*some, fit.factors.shape), errors=(error,))

        most = fit.factors.rank
        # Of all that there are the error is known.
        found = smallest_within(lambda s: fit if s == most else cut(s), error, (most,))
        reason = f"{found.rank} terms are the fewest within {error} of {most}, {fit.reason}"
        factors = found.fit.factors.map(torch.Tensor.contiguous)
        return replace(found.fit, factors=factors, reason=reason)

    def _fewest(self, matrix: Tensor, error: float) -> Fit[LowRank]:
        """The fewest terms within `error`, of the whole spectrum."""
        scaled = Scaled.of(matrix, self.largest)
        spectrum, how = self.svd.spectrum(scaled.work, None)

        def cut(s: int) -> Fit[LowRank]:
            left, right = scaled.cast(*spectrum.split(s))
            error = scaled.rel_error(spectrum, left, right)
            return Fit(LowRank(left, right), (error,), True, how)

        limit = min(matrix.shape)
        return search(cut, None, error, limit, matrix.dtype, energies=spectrum.energies)

    def _of(self, matrix: Tensor, s: int) -> Fit[LowRank]:
        """Of s terms. What `svd` would check of the matrix was seen of the weight."""
        scaled = Scaled.of(matrix, self.largest)
        spectrum, how = self.svd.spectrum(scaled.work, s)
        left, right = scaled.cast(*spectrum.split(s))
        error = scaled.rel_error(spectrum, left, right) if self.measure else math.nan
        return Fit(LowRank(left, right), (error,), True, f"rank {s} as asked, {how}")


def as_terms(left: Tensor, right: Tensor, pair: Pair, kernel: tuple[int, ...]) -> KroneckerSum:
    """left (m1 n1, s), right (s, m2 n2 taps) as a sum of Kronecker products."""
    s = left.shape[1]
    a = left.T.reshape(s, *pair[0]).contiguous()
    return KroneckerSum(a, right.reshape(s, *pair[1], *kernel).contiguous())
