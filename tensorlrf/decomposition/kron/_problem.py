"""The work behind `kron`: a weight for one pair of shapes, and the best of several."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._fit_or_plain import fit_or_plain
from tensorlrf.decomposition._input import working_dtype
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.kron._als import KroneckerALS, alternate, fewest
from tensorlrf.decomposition.kron._shapes import Pair, rearranged, terms
from tensorlrf.decomposition.kron._solve import LARGE, Cutter, as_terms
from tensorlrf.decomposition.linalg._batched import as_batch, fit_matrices, per_item, scales_of
from tensorlrf.decomposition.rank import Rank
from tensorlrf.errors import TensorlrfWarning, warn
from tensorlrf.factors import Batch, Factors, KroneckerSum

F = TypeVar("F", bound=Factors)

FIRST_SWEEPS = 2
"""In the metric of the inputs pairs are compared after so many sweeps, which gain most."""


@dataclass(frozen=True)
class KroneckerProblem:
    """A weight, and how to decompose it for a pair of shapes."""

    tensor: Tensor
    cutter: Cutter
    target: Target[KroneckerSum]
    n_iter_max: int
    tol: float | None

    def solve(self, pair: Pair, rank: Rank | None, error: float | None) -> Fit[KroneckerSum]:
        s = terms(rank, pair, math.prod(self.tensor.shape[2:]))
        if self.target.is_plain:
            return self.plain(pair, s, error)
        return self.served(pair, s, error or 0.0)

    def shorter(self) -> KroneckerProblem:
        """The same with the first sweeps only."""
        return replace(self, n_iter_max=min(FIRST_SWEEPS, self.n_iter_max))

    def plain(self, pair: Pair, s: int | None, error: float | None) -> Fit[KroneckerSum]:
        """The truncated SVD of the rearrangement, whose error is that of the terms."""
        fit = self.cutter.fit(rearranged(self.tensor, pair), s, error)
        factors = as_terms(fit.factors.left, fit.factors.right, pair, self._kernel())
        return Fit(factors, fit.errors, fit.converged, fit.reason)

    def served(self, pair: Pair, s: int | None, error: float) -> Fit[KroneckerSum]:
        """The same, improved for the target."""
        als = KroneckerALS(self.target, pair)
        limit = min(als.image.shape)
        whole = None
        if s is None and limit <= LARGE:
            # Without a sketch fewer terms are the first ones of more.
            whole = self.plain(pair, limit, None).factors

        def plain_of(s: int) -> KroneckerSum:
            if whole is None:
                return self.plain(pair, s, None).factors
            return KroneckerSum(whole.a[:s].clone(), whole.b[:s].clone())

        def solve(s: int) -> Fit[KroneckerSum]:
            usual = plain_of(s)
            improved = self._improver(als, pair, usual)
            return fit_or_plain(self.target, lambda: usual, improved)

        return solve(s) if s is not None else fewest(solve, limit, error, self.tensor.dtype)

    def _improver(
        self, als: KroneckerALS, pair: Pair, plain: KroneckerSum
    ) -> Callable[[], Fit[KroneckerSum]]:
        kernel, root, s = self._kernel(), self.target.root, plain.rank

        def improved() -> Fit[KroneckerSum]:
            start = plain.a.double() / root, plain.b.double().reshape(s, pair[1][0], -1) / root
            run = alternate(als, *start, self.n_iter_max, self.tol)
            sides = [(side * root).to(self.tensor.dtype) for side in run.state]
            reason = f"{s} terms, {run.sweeps} sweeps in the metric of gram"
            factors = KroneckerSum(sides[0], sides[1].reshape(s, *pair[1], *kernel))
            return Fit(factors, run.errors, run.converged, reason)

        return improved

    def _kernel(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape[2:])


@dataclass(frozen=True)
class BatchedProblem:
    """Weights (b, m, n, *kernel) of a batch, all for one pair of shapes."""

    stack: Tensor
    batch: tuple[int, ...]
    solver: str

    def solve(self, pair: Pair, rank: Rank | None, error: float | None) -> Fit[Batch]:
        shape = list(self.stack.shape[1:])
        kernel = shape[2:]
        s = terms(rank, pair, math.prod(kernel))

        def whole_of(left: Tensor, right: Tensor) -> Batch:
            b, _, s = left.shape
            parts = {
                "a": left.mT.reshape(b, s, *pair[0]),
                "b": right.reshape(b, s, *pair[1], *kernel),
            }
            return as_batch(KroneckerSum, parts, {"shape": shape}, self.batch)

        matrices = rearranged(self.stack, pair, 1)
        return fit_matrices(matrices, self.solver, s, error or 0.0, whole_of)


def best_of(
    solve: Callable[[Pair], Fit[F]],
    pairs: Sequence[Pair],
    error: float | None,
    dtype: torch.dtype,
    loss: Callable[[Fit[F]], float] = lambda fit: fit.error,
    finish: Callable[[Pair], Fit[F]] | None = None,
) -> Fit[F]:
    """The pair with the least `loss`, or with `error` the one within it with fewest parameters.

    What `solve` finds for that pair, or `finish`, which may take longer.
    """
    with warnings.catch_warnings():
        # One pair may be out of reach of `error` where another is not.
        warnings.simplefilter("ignore", TensorlrfWarning)
        fits = [(solve(pair), pair) for pair in pairs]
    if error is None:
        best, pair = min(fits, key=lambda tried: loss(tried[0]))
    else:
        best, pair = min(
            fits, key=lambda tried: (not tried[0].converged, tried[0].factors.n_params)
        )
    if finish is not None:
        best = finish(pair)
    elif (
        error is not None and error >= torch.finfo(working_dtype(dtype)).eps and not best.converged
    ):
        warn(
            f"error={error} is out of reach with every pair of shapes: rounding to {dtype} "
            f"leaves {best.error:.3g}; ask for more, or pass the weight in float32",
            TensorlrfWarning,
        )
    chosen = f"shapes {pair[0]} and {pair[1]}, the best of {len(fits)} tried"
    return replace(best, reason=f"{best.reason}, {chosen}")


def normalised(stack: Tensor, gram: Tensor | None) -> Tensor:
    """Weights (b, m, n, taps) of which pairs are estimated, from (b, m, n, *kernel).

    With their inputs of unit length where `gram` is given.
    """
    b, m, n = stack.shape[:3]
    work = stack.to(working_dtype(stack.dtype)).reshape(b, m, n, -1)
    work = work / per_item(scales_of(work), work)
    if gram is None:
        return work
    largest = float(gram.diagonal().max())
    lengths = (gram.diagonal().clamp(min=0) / (largest or 1.0)).sqrt()
    return work * lengths.to(work.dtype).reshape(n, -1)
