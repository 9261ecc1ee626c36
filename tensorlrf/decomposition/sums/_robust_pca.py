"""Principal components of a matrix some entries of which are anything (Candes et al. 2011)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import check_iteration
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import as_tensor
from tensorlrf.decomposition._options import check_callback
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.linalg._gram import thin_svd
from tensorlrf.decomposition.linalg._spectrum import ShortSideEigh, balanced, squared_norm
from tensorlrf.decomposition.linalg.parts._alternate import Callback
from tensorlrf.decomposition.linalg.parts._nearest import factors_of_sides
from tensorlrf.decomposition.methods import factors_of
from tensorlrf.decomposition.random_state import generator
from tensorlrf.decomposition.sums._support import packed
from tensorlrf.errors import ArgumentError
from tensorlrf.factors import Composite
from tensorlrf.factors.autocast import without_autocast

GROWTH = 1.2
"""Of the penalty on what the constraint misses, from one iteration to the next: with 1.5, as is
usual, iterations are half as many, and one small matrix in thirty is not recovered; with 1.2 one in
900, as with 1.1."""

FIRST = 1.25
"""The first penalty times the largest singular value."""

LARGEST = 1e7
"""The penalty over the first one, at most."""

SPARE = 5
"""Singular vectors beyond those that stay."""


@without_autocast()
def fit_robust_pca(
    tensor: Any,
    *,
    weight: float | None = None,
    n_iter_max: int = 200,
    tol: float | None = None,
    callback: Callback | None = None,
) -> Fit[Composite]:
    """A matrix as one of low rank and a sparse one, neither rank nor entries being known.

    Of all pairs with L + S = W the one of least ‖L‖_* + weight ‖S‖_1, by the inexact augmented
    Lagrangian: L takes singular values less 1 / mu, S entries less weight / mu, and mu grows.
    Singular vectors are those of the iteration before, turned once towards the new ones. Where W
    is of low rank but for some entries, as large as they like, and these lie anywhere, both are
    found exactly. What is noise in every entry belongs to neither: for that, and for given sizes,
    `low_rank_plus_sparse`.

    Parameters
    ----------
    tensor : Tensor or array of shape (m, ...)
        Seen as a matrix W (m, n).
    weight : float, optional
        Of the sum of the sizes of entries, above zero; by default 1 / sqrt(max(m, n)).
    n_iter_max : int
        Most iterations.
    tol : float, optional
        Stops when ‖W - L - S‖ is at most this share of ‖W‖; by default 1e-7, in float32 and below
        1e-6.
    callback : callable, optional
        Called as callback(factors, error) after each iteration; returning True ends them.

    Returns
    -------
    Composite
        Of a LowRank and a SparseTensor. Of `fit_robust_pca` a `Fit` with the relative errors
        ‖W - L - S‖ / ‖W‖ of all iterations.

    Raises
    ------
    ArgumentError
        For what cannot be decomposed, and a weight that is not above zero.

    References
    ----------
    Candes, Li, Ma & Wright 2011, "Robust principal component analysis?"; Lin, Chen & Ma 2010, "The
    augmented Lagrange multiplier method for exact recovery of corrupted low-rank matrices",
    algorithm 5.

    Examples
    --------
    >>> low = torch.randn(40, 2) @ torch.randn(2, 30)
    >>> spoilt = low.clone()
    >>> spoilt.view(-1)[torch.randperm(1200)[:36]] += 10
    >>> f = tensorlrf.robust_pca(spoilt)
    >>> f.parts[0].rank, f.parts[1].nnz, f.parts[0].rel_error(low) < 1e-4
    (2, 36, True)
    """
    checked = as_tensor(tensor)
    check_iteration(n_iter_max, tol)
    check_callback(callback, None)
    target: Target[Composite] = Target.of(checked)
    if weight is None:
        weight = 1 / math.sqrt(max(target.shape))
    if (
        isinstance(weight, bool)
        or not isinstance(weight, (int, float))
        or not 0 < weight < math.inf
    ):
        raise ArgumentError(
            f"weight={weight!r} must be a number above zero, such as 1 / sqrt(max(m, n)), the "
            "default"
        )
    problem = _Problem(target, tuple(checked.shape), float(weight))
    wide = target.work.dtype == torch.float64
    enough = (1e-7 if wide else 1e-6) if tol is None else tol
    errors: list[float] = []
    reason = f"n_iter_max={n_iter_max} iterations"
    for _ in range(n_iter_max):
        errors.append(problem.iterate())
        if errors[-1] <= enough:
            reason = f"rank {problem.rank} after {len(errors)} iterations"
            break
        if callback is not None and callback(problem.pack(), errors[-1]):
            reason = f"stopped by callback after iteration {len(errors)}"
            break
    factors = problem.pack()
    met = errors[-1] <= enough
    return Fit(factors, (*errors, target.error(factors)), met, reason)


robust_pca = factors_of(fit_robust_pca)


class _Problem:
    """Both parts, the multipliers and the penalty."""

    def __init__(self, target: Target[Composite], shape: tuple[int, ...], weight: float) -> None:
        self.target, self.shape, self.weight = target, shape, weight
        work = target.work
        self.norm = math.sqrt(squared_norm(work))
        first = ShortSideEigh(work, 1)
        largest = math.sqrt(max(float(first.energies[0]), 0.0)) or 1.0
        # The dual norm of the multipliers is one, where they begin.
        dual = max(largest, float(work.abs().max()) / weight)
        self.penalty, self.most = FIRST / largest, LARGEST * FIRST / largest
        # Y / mu of the multipliers Y and the penalty mu.
        self.scaled = work / ((dual or 1.0) * self.penalty)
        self.entries = torch.zeros_like(work)
        self.sides = work.new_zeros(len(work), 1), work.new_zeros(1, work.shape[1])
        self.rank = 1
        self.draws = generator(0, work.device)
        self.basis = work.new_zeros(work.shape[1], 0)

    def iterate(self) -> float:
        """One step of both parts and of the multipliers; the relative error after it."""
        level = self.weight / self.penalty
        given = (self.target.work + self.scaled).sub_(self.entries)
        low = self._low(given)
        rest = given.add_(self.entries).sub_(low)
        # Y + mu (W - L - S) is what S leaves of W - L + Y / mu, times mu.
        scaled = rest.clamp(-level, level)
        self.entries = rest.sub_(scaled)
        missed = math.sqrt(squared_norm(self.scaled.sub_(scaled)))
        grown = min(GROWTH * self.penalty, self.most)
        self.scaled, self.penalty = scaled.mul_(self.penalty / grown), grown
        return missed / (self.norm or 1.0)

    def _low(self, matrix: Tensor) -> Tensor:
        """Singular values less 1 / mu; no more of them are sought than may stay."""
        level, limit = 1 / self.penalty, min(matrix.shape)
        sought = min(limit, self.rank + max(SPARE, self.rank // 10))
        while True:
            left, values, right = self._leading(matrix, sought)
            if sought == limit or float(values[-1]) <= level:
                break
            sought = min(limit, 2 * sought)
        r = max(1, int((values > level).sum()))
        shrunk = (values[:r] - level).clamp(min=0)
        self.rank = r
        self.sides = balanced(left[:, :r], shrunk, right[:r])
        return self.sides[0] @ self.sides[1]

    def _leading(self, matrix: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Nearly the leading singular triples: a subspace that begins where the last one ended."""
        n = matrix.shape[1]
        if 4 * count > min(matrix.shape):
            triples = thin_svd(matrix)
            self.basis = triples[2][:count].T
            return triples[0][:, :count], triples[1][:count], triples[2][:count]
        basis = self.basis[:, :count]
        if basis.shape[1] < count:
            more = torch.randn(
                n, count - basis.shape[1], generator=self.draws, dtype=matrix.dtype,
                device=matrix.device,
            )  # fmt: skip
            basis = torch.linalg.qr(torch.cat([basis, more], 1))[0]
        outer = torch.linalg.qr(matrix @ basis)[0]
        inner = matrix.T @ outer  # (n, count)
        right, values, turn = thin_svd(inner)
        self.basis = right
        return outer @ turn.T, values, right.T

    def pack(self) -> Composite:
        target = self.target
        low = factors_of_sides(target, self.sides, self.shape)
        entries = (self.entries * target.scale).to(target.dtype)
        return Composite((low, packed(entries != 0, entries, self.shape)))
