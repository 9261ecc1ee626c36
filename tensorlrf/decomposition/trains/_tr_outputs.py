"""Tensor rings of a matrix whose outputs are nearest: least squares in the metric of the inputs.

The first cores hold the digits of the rows, the others those of the columns: W = A B with A the
half of the rows and B that of the columns, joined at two bonds. With G (n, n) the second moments
of the inputs, tr((W - A B) G (W - A B)^T) is the plain problem for the cores of the rows, with
G B^T in place of B^T; the cores of the columns take steps of conjugate gradients, in which G is
multiplied with the whole half and nothing is inverted, and so do those of the rows where the ranks
are large.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.trains._tr_als import balanced, half_sweep
from tensorlrf.decomposition.trains._tr_gradients import (
    Seen,
    half_by_gradients,
    marginals,
    seen_through,
    too_wide,
)
from tensorlrf.factors import TRFactors
from tensorlrf.factors.algebra import chain_product


class OutputRingProblem:
    """A target W (m, n) with moments G (n, n), to be fitted by rings with `half` row cores."""

    def __init__(self, target: Target[TRFactors], half: int) -> None:
        self.target, self.half = target, half
        self.gram, self.moments = target.moments, target.image  # G and W G, (m, n)

    def rel_error(self, cores: Sequence[Tensor]) -> float:
        """sqrt(tr(D G D^T) / tr(W G W^T)) for D = W - ring."""
        first = chain_product(cores[: self.half])  # (z, m, y)
        second = chain_product(cores[self.half :])  # (y, n, z)
        model = first.transpose(0, 1).flatten(1) @ second.permute(2, 0, 1).flatten(0, 1)
        return self.target.rel_error(self.target.matrix - model)

    def sweep(self, cores: Sequence[Tensor], ridge: float) -> tuple[list[Tensor], float]:
        """Every core once, and the relative error of the outputs afterwards."""
        first, second = list(cores[: self.half]), list(cores[self.half :])
        columns = chain_product(second)  # (y, n, z)
        y, n, z = columns.shape
        turned = columns.permute(1, 2, 0).reshape(n, z * y)
        target = self.moments @ turned  # (m, z y)
        if too_wide(first):
            weighted = self.gram @ turned
            ends = marginals(turned, weighted, z)
            first = half_by_gradients(first, target, seen_through(turned, weighted), ends)
        else:
            cross = target.reshape(-1, z, y).transpose(0, 1)  # (z, m, y)
            outer = turned.T @ self.gram @ turned
            outer = outer.reshape(z, y, z, y).permute(1, 3, 0, 2).reshape(y * y, z * z)
            first, _ = half_sweep(first, cross, outer, ridge)

        rows = chain_product(first)  # (z, m, y)
        flat = rows.permute(1, 2, 0).reshape(-1, y * z)  # (m, y z)
        target = self.moments.T @ flat  # (n, y z)
        bonds = marginals(flat, flat, y) if too_wide(second) else None
        second = half_by_gradients(second, target, self._seen_through(flat), bonds)
        cores = balanced([*first, *second])
        return cores, self.rel_error(cores)

    def _seen_through(self, rows: Tensor) -> Seen:
        """K (n, r) to G K R^T R for R (m, r), in the order that takes less."""
        m, r = rows.shape
        n = len(self.gram)
        if m * (2 * r + n) < r * (n + r):
            return lambda columns: (self.gram @ (columns @ rows.T)) @ rows
        square = rows.T @ rows
        return lambda columns: self.gram @ columns @ square
