"""Low-rank matrices that are nearest in a form that no change of basis makes plain.

Where entries count by weights of their own, as where some are not known, left (m, r) for a given
right (r, n) is a linear problem of least squares, and the other way round (Gabriel & Zamir 1979,
"Lower rank approximation of matrices by least squares with any choice of weights").
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import Descent, beyond, descend
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._fit_or_plain import fit_or_plain
from tensorlrf.decomposition._search import search
from tensorlrf.decomposition._target import Sides, Target
from tensorlrf.decomposition.linalg._solve import cholesky
from tensorlrf.decomposition.linalg._spectrum import ShortSideEigh, balanced
from tensorlrf.decomposition.linalg._truncation import Scaled
from tensorlrf.errors import UnsupportedError
from tensorlrf.factors import LowRank

SWEEPS = 200
"""At most."""

RIDGE = 1e-4
"""Of what preconditions, relative: directions that hardly count are left as they are."""


class LowRankALS:
    """Alternating least squares for a target (m, n), by conjugate gradients."""

    def __init__(self, target: Target[LowRank]) -> None:
        self.target = target
        self.marginals = [None if g is None else cholesky(g, RIDGE) for g in target.marginals]

    def descend(self, left: Tensor, right: Tensor) -> Descent[list[Tensor]]:
        """From left (m, r) and right (r, n), float64; balanced at the end."""
        start = Descent.at([left, right], self._error(left, right))
        ended = descend([start], self._sweep, None, SWEEPS, ahead=beyond)
        return Descent(list(rebalanced(*ended.state)), ended.errors, ended.converged, ended.reason)

    def _sweep(self, sides: list[Tensor]) -> tuple[list[Tensor], float]:
        left, right = sides
        rows, columns = self.target.marginals
        inner = right if columns is None else right @ columns
        left = self.target.improved(
            left, lambda x: x @ right, lambda d: d @ right.T, self._near(inner @ right.T, 0)
        )
        inner = left if rows is None else rows @ left
        right = self.target.improved(
            right, lambda x: left @ x, lambda d: left.T @ d, self._near(inner.T @ left, 1)
        )
        return [left, right], self._error(left, right)

    def _error(self, left: Tensor, right: Tensor) -> float:
        return self.target.rel_error(self.target.matrix - left @ right)

    def _near(self, inner: Tensor, mode: int) -> Callable[[Tensor], Tensor]:
        """What comes near the inverse of the normal map of left (mode 0) or right (mode 1): the
        marginal along that mode, and `inner` (r, r) of the other side."""
        over, among = self.marginals[mode], cholesky(inner, RIDGE)

        def precondition(residual: Tensor) -> Tensor:
            rows = residual if mode == 0 else residual.T
            rows = torch.cholesky_solve(rows.T, among).T
            rows = rows if over is None else torch.cholesky_solve(rows, over)
            return rows if mode == 0 else rows.T

        return precondition


def rebalanced(left: Tensor, right: Tensor) -> Sides:
    """The same product as its SVD has it, the root of each singular value on either side."""
    left, upper = torch.linalg.qr(left)
    right, lower = torch.linalg.qr(right.T)
    u, values, vt = torch.linalg.svd(upper @ lower.T)
    return balanced(left @ u, values, vt @ right.T)


def fit_by_als(
    target: Target[LowRank],
    scaled: Scaled,
    *,
    rank: int | None,
    error: float | None,
    shape: tuple[int, ...],
) -> Fit[LowRank]:
    """In a form without a closed one: from the plain factors on, and never worse than these."""
    if scaled.work.requires_grad:
        raise UnsupportedError(
            "differentiable=True is not served where no closed form is; leave it out"
        )
    plain, als = ShortSideEigh(target.work), LowRankALS(target)

    def cast(left: Tensor, right: Tensor) -> LowRank:
        return LowRank(*scaled.cast(left, right), shape)

    def cut(r: int) -> Fit[LowRank]:
        usual = plain.split(r)

        def served() -> Fit[LowRank]:
            run = als.descend(*(side.to(torch.float64) for side in usual))
            return Fit(cast(*run.state), run.errors, run.converged, f"rank {r}, {run.reason}")

        return fit_or_plain(target, lambda: cast(*usual), served)

    return search(cut, rank, error, min(target.shape), target.dtype)
