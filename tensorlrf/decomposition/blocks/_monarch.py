"""Monarch approximation: a product of two block-diagonal matrices and fixed permutations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from tensorlrf.decomposition._descent import check_iteration, finished
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._fit_or_plain import fit_or_plain
from tensorlrf.decomposition._options import check_blocks, check_moments
from tensorlrf.decomposition._search import search
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.blocks._blr import SWEEPS
from tensorlrf.decomposition.blocks._blr_fit import check_block_rank
from tensorlrf.decomposition.blocks._blr_matrix import (
    both,
    check_pair,
    matrix_target,
    too_many,
)
from tensorlrf.decomposition.blocks._monarch_outputs import Panels, descend
from tensorlrf.decomposition.config import Structured, config
from tensorlrf.decomposition.linalg._stacked_svd import StackedSVD
from tensorlrf.decomposition.methods import factors_of, method
from tensorlrf.decomposition.rank import Rank, _one_int, _share, check_rank_or_error, whole
from tensorlrf.factors import MonarchFactors


@method(
    "monarch",
    gives=MonarchFactors,
    on={"tensor", "linear"},
    order=(11, 10),
    sweeps_in_metric=True,
    law="what it leaves is the discarded singular energy of the permuted blocks",
    measured="formats: monarch",
)
def fit_monarch(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    blocks: int | tuple[int, int] | None = None,
    gram: Any = None,
    mean: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
) -> Fit[MonarchFactors]:
    """The nearest Monarch matrix, with blocks of rank r.

    A `tensor` (m, n) is padded with zeros to (S Q, K P). For each pair (q, k) the S x P block of
    the rows s Q + q and the columns k P + p becomes the nearest one of rank r: the blocks share no
    entries, so that the whole is nearest, too.

    Parameters
    ----------
    tensor : Tensor or array of shape (m, n)
    rank : int, float or str, optional
        Of each block, 1 for the Monarch matrices of the paper; a share of the parameters in (0, 1]
        (an upper bound, down to rank one) or "same"; or instead
    error : float, optional
        The smallest rank whose relative error is at most this.
    blocks : int or (Q, K), optional
        By default divisors of m and n near their roots, or the rounded roots where there are none.
    gram : Tensor or array of shape (n, n), optional
        Second moments X X^T / N of the inputs: errors are then relative errors of the outputs, and
        from the plain solution on each block becomes the best for what the others leave of the
        outputs. What the inputs do not span follows the plain fit (`Fit.shrinkage`), than which the
        result is never worse in that metric.
    mean : Tensor or array of shape (n,), optional
        The mean of the same inputs, with `gram`: the outputs about their mean.
    n_iter_max : int, optional
        With `gram`, most sweeps over the blocks, 200 by default.
    tol : float, optional
        With `gram`, stops when a sweep lowers the squared error by no more than this share of it;
        by default when more sweeps would gain little.

    Returns
    -------
    MonarchFactors
        Of `fit_monarch` a `Fit` with the relative errors: of the result, and with `gram` at the
        start and after each sweep before that. `converged` is False where `error` was not reached,
        or where sweeps ran out.

    Raises
    ------
    RankError
        For a rank below one or above min(S, P).
    ShapeError
        For blocks that do not fit.
    UnsupportedError
        For more than two modes.
    ArgumentError
        For what cannot be decomposed.

    Warns
    -----
    TensorlrfWarning
        Where rounding keeps `error` out of reach.
    ConvergenceWarning
        Where the default number of sweeps leaves over 2% to be gained.

    References
    ----------
    Dao et al. 2022, section 3.3, with blocks of rank r.

    Examples
    --------
    >>> f = tensorlrf.monarch(torch.rand(64, 64), 1)
    >>> f.blocks, f.n_params
    ((8, 8), 1024)
    """
    target = matrix_target(tensor, gram, mean, "monarch")
    rank, error = check_rank_or_error(rank, error, target.dtype)
    check_iteration(n_iter_max, tol)
    check_moments(gram, mean, n_iter_max=n_iter_max, tol=tol)
    m, n = target.shape
    if blocks is None:
        counts = near_root(m), near_root(n)
    else:
        what = "there are no more blocks (Q, K) than rows and columns"
        counts = check_pair(blocks, "blocks", 1, (m, n), what)
    problem = _Problem(
        target,
        counts,
        SWEEPS if n_iter_max is None else n_iter_max,
        tol,
    )
    r, limit = None, problem.limit
    if rank is not None:
        r = _block_rank(rank, (m, n), counts)
    fit = search(problem.cut, r, error, limit, target.dtype, climb=(limit,))
    return finished(fit, n_iter_max)


monarch = factors_of(fit_monarch)


@config("monarch")
class Monarch(Structured):
    """A Monarch matrix, as a method of `compress`.

    Examples
    --------
    >>> print(tensorlrf.Monarch(blocks=(8, 4)))
    monarch(blocks=[8, 4])
    """

    blocks: int | tuple[int, int] | None

    def check_options(self) -> None:
        super().check_options()
        check_blocks("blocks", self.blocks)

    def why_not(self, shape: tuple[int, ...], groups: int) -> str:
        return too_many(self.blocks, shape) or super().why_not(shape, groups)

    def least_params(self, shape: tuple[int, ...]) -> int:
        Q, K = both(self.blocks) or (near_root(shape[0]), near_root(shape[1]))
        return Q * K * (-(-shape[0] // Q) - (-shape[1] // K))

    def fresh_factors(
        self, rank: Any, shape: tuple[int, ...], values: Callable[..., Tensor]
    ) -> MonarchFactors:
        Q, K = both(self.blocks) or (near_root(shape[0]), near_root(shape[1]))
        S, P = -(-shape[0] // Q), -(-shape[1] // K)
        r = _block_rank(rank, shape, (Q, K))
        return MonarchFactors(values(Q, S, K, r), values(K, Q, r, P), shape)


def _block_rank(rank: Rank, shape: tuple[int, ...], counts: tuple[int, int]) -> int:
    """Of each of Q K blocks of a matrix, (S, P): an int, or a share of all parameters."""
    (m, n), (Q, K) = shape, counts
    S, P = -(-m // Q), -(-n // K)
    share = _share(rank)
    if share is not None:
        return max(1, min(S, P, whole(share * m * n / (Q * K * (S + P)))))
    return check_block_rank(_one_int(rank), S, P)


def near_root(n: int) -> int:
    """The divisor of n nearest to its root in ratio, if within a factor of two; else the rounded
    root."""
    root = math.sqrt(n)
    divisors = [d for d in range(1, n + 1) if n % d == 0]
    nearest = min(divisors, key=lambda d: abs(math.log(d / root)))
    return nearest if 0.5 <= nearest / root <= 2 else round(root)


class _Problem:
    """The permuted blocks of a weight, taken apart."""

    def __init__(
        self, target: Target[Any], counts: tuple[int, int], n_iter_max: int, tol: float | None
    ) -> None:
        self.target = target
        (m, n), (Q, K) = target.shape, counts
        self.Q, self.K, self.S, self.P = Q, K, -(-m // Q), -(-n // K)
        self.limit = min(self.S, self.P)
        self.n_iter_max, self.tol = n_iter_max, tol
        padded = F.pad(target.work, (0, K * self.P - n, 0, Q * self.S - m))
        by_row = padded.view(self.S, Q, K, self.P)
        self.blocks = by_row.permute(1, 2, 0, 3).contiguous()  # (Q, K, S, P)
        self.svd = StackedSVD.of(self.blocks.view(Q * K, self.S, self.P))

    def cut(self, r: int) -> Fit[MonarchFactors]:
        """Blocks of rank r."""
        start = self._plain(r)
        usual, target = self._pack(start), self.target
        if target.is_plain:
            return Fit(usual, (target.error(usual),), True, f"blocks of rank {r}")

        def fit() -> Fit[MonarchFactors]:
            panels, run = descend(target, self.blocks, start, self.n_iter_max, self.tol)
            reason = run.how("a sweep gained little more")
            return Fit(self._pack(panels), run.errors, run.converged, reason)

        return fit_or_plain(target, lambda: usual, fit)

    def _plain(self, r: int) -> Panels:
        roots = self.svd.values[:, :r].sqrt()
        left = self.svd.left[:, :, :r] * roots[:, None, :]
        right = roots[:, :, None] * self.svd.right[:, :r]
        Q, K = self.Q, self.K
        return left.reshape(Q, K, self.S, r), right.reshape(Q, K, r, self.P)

    def _pack(self, panels: Panels) -> MonarchFactors:
        left, right = (self._cast(side.transpose(0, 1)) for side in panels)
        return MonarchFactors(left.permute(1, 2, 0, 3).contiguous(), right, self.target.shape)

    def _cast(self, side: Tensor) -> Tensor:
        return (side * self.target.root).to(self.target.dtype).contiguous()
