"""One right factor for several matrices: W_i near L_i R for all i.

Where all of them are told in one metric the L_i lie above each other in the truncated SVD of the
W_i above each other. Where each has moments G_i of its own, in sum_i tr((W_i - L_i R) G_i
(W_i - L_i R)^T), the best L_i for a given R are

    L_i = W_i G_i R^T (R G_i R^T)^-1,

and the best R for given L_i solves sum_i L_i^T L_i R G_i = sum_i L_i^T W_i G_i: in turn they lower
the sum, from the R of the pooled moments on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import Descent, beyond, check_iteration, descend
from tensorlrf.decomposition._input import as_tensor_and_largest, check_sequence
from tensorlrf.decomposition._quadratic import Product
from tensorlrf.decomposition.linalg._gram import scale_of
from tensorlrf.decomposition.linalg._solve import cholesky, conjugate_gradients
from tensorlrf.decomposition.linalg._spectrum import balanced, ratio
from tensorlrf.decomposition.linalg.threads import threaded
from tensorlrf.decomposition.second_moments import check_gram
from tensorlrf.decomposition.shrinkage import least_amount, shrunk
from tensorlrf.decomposition.svd._svd import svd
from tensorlrf.errors import ArgumentError, RankError, ShapeError
from tensorlrf.factors import LowRank
from tensorlrf.factors.autocast import without_autocast

SWEEPS = 100
"""At most, by default."""

RIDGE = 1e-6
"""Of what preconditions, relative."""


@without_autocast()
@threaded
def shared_svd(
    matrices: Sequence[Any],
    rank: int,
    *,
    grams: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
) -> list[LowRank]:
    """Matrices of low rank with one right factor, nearest to the given ones together.

    Of W_i (m_i, n) the result has L_i (m_i, r) and one R (r, n) for all, with the least sum over i
    of ``|(W_i - L_i R) G_i^(1/2)|^2``. With one metric for all it is the truncated SVD of the
    matrices above each other. With t_i(r) what the best matrix of rank r leaves of W_i alone,
    squared, and t(r) what this one leaves of all,

        sum_i t_i(r) <= t(r),      t(sum_i r_i) <= sum_i t_i(r_i),

    so that it takes no more parameters than matrices by themselves where their rows lie in spaces
    that meet.

    Parameters
    ----------
    matrices : sequence of Tensor or array of shape (m_i, ...)
        One at least, of one dtype, on one device; each is seen as a matrix with n columns.
    rank : int
        r, from 1 to min(sum_i m_i, n).
    grams : Tensor (n, n) or sequence of these, optional
        Second moments of the inputs of all, or of each. What they do not span follows the plain
        norm. Those of each ask for sweeps; those of all, or none, for none.
    n_iter_max : int, optional
        Most sweeps, by default 100.
    tol : float, optional
        The end is where a sweep lowers the error by no more than this share of it; by default where
        more would gain little.

    Returns
    -------
    list of LowRank
        One for each matrix, of its shape; `right` is one tensor.

    Raises
    ------
    ArgumentError, ShapeError, RankError
        For what cannot be decomposed together.

    References
    ----------
    Wang et al. 2025, "Basis Sharing: cross-layer parameter sharing for large language model
    compression" (equations 1 and 5); Eckart & Young 1936.

    Examples
    --------
    >>> base = torch.rand(3, 20)
    >>> first, second = torch.rand(8, 3) @ base, torch.rand(6, 3) @ base
    >>> one, other = tensorlrf.decomposition.shared_svd([first, second], 3)
    >>> one.right is other.right, one.rel_error(first) < 1e-5, other.rel_error(second) < 1e-5
    (True, True, True)
    """
    check_iteration(n_iter_max, tol)
    tensors = checked_matrices(matrices, "matrices")
    flat = [t.detach().flatten(1) for t in tensors]
    stack = torch.cat(flat)
    rows, n = stack.shape
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= min(rows, n):
        raise RankError(
            f"rank={rank!r} must be an int from 1 to {min(rows, n)}: the matrices above each other "
            f"are {rows} x {n}"
        )
    metrics = metrics_of(grams, flat)
    if not isinstance(grams, (list, tuple)) and (n_iter_max, tol) != (None, None):
        name, value = ("tol", tol) if n_iter_max is None else ("n_iter_max", n_iter_max)
        raise ArgumentError(
            f"{name}={value!r} goes with grams= of each matrix; in one metric there is nothing to "
            "iterate, leave it out"
        )
    if metrics is None or len(metrics) == 1:
        metric = None if metrics is None else Product(None, metrics[0])
        sides = _sides(stack, rank, metric)
    else:
        sides = _Together(flat, metrics).fitted(rank, n_iter_max or SWEEPS, tol)
    left, right = sides
    parts = torch.split(left, [len(w) for w in flat])
    return [
        LowRank(part.clone(), right, tuple(t.shape)) for part, t in zip(parts, tensors, strict=True)
    ]


def _sides(stack: Tensor, rank: int, metric: Product | None) -> tuple[Tensor, Tensor]:
    """Of the truncated SVD in one metric."""
    found = cast("LowRank", svd(stack, rank, gram=metric))
    return found.left, found.right


def checked_matrices(matrices: Any, name: str) -> list[Tensor]:
    """Several with equally many columns, of one dtype and device; `name` is the argument."""
    check_sequence(matrices, name, "[q.weight, k.weight]")
    if not matrices:
        raise ArgumentError(f"{name} is empty; give one at least")
    tensors = [as_tensor_and_largest(w, f"{name}[{k}]")[0] for k, w in enumerate(matrices)]
    first = tensors[0]
    for k, t in enumerate(tensors):
        if t[0].numel() != first[0].numel():
            raise ShapeError(
                f"{name}[{k}] has {t[0].numel()} columns and {name}[0] {first[0].numel()}; one "
                "right factor needs as many of all"
            )
        if (t.dtype, t.device) != (first.dtype, first.device):
            raise ArgumentError(
                f"{name}[{k}] is {t.dtype} on {t.device} and {name}[0] {first.dtype} on "
                f"{first.device}; bring them together with .to()"
            )
    return tensors


def metrics_of(grams: Any, flat: Sequence[Tensor]) -> list[Tensor] | None:
    """Of each matrix over one common scale, shrunk so that every direction counts; of all where
    there is one, None without."""
    if grams is None:
        return None
    n = flat[0].shape[1]
    given = list(grams) if isinstance(grams, (list, tuple)) else [grams]
    if isinstance(grams, (list, tuple)) and len(given) != len(flat):
        raise ShapeError(
            f"grams are {len(given)} for {len(flat)} matrices; give one of all, or one of each"
        )
    if all(g is given[0] for g in given):
        given = given[:1]
    checked = [check_gram(g, n, w) for g, w in zip(given, flat, strict=False)]
    largest = max((root for matrix, root in checked if bool(matrix.any())), default=1.0)
    return [shrunk(g, least_amount(g)) * (root / largest) ** 2 for g, root in checked]


@dataclass
class _Together:
    """Matrices W_i (m_i, n), each in a metric of its own."""

    given: Sequence[Tensor]
    metrics: Sequence[Tensor]

    @cached_property
    def scale(self) -> float:
        largest = max(float(w.abs().max()) for w in self.given)
        return scale_of(self.given[0], largest)

    @cached_property
    def weights(self) -> list[Tensor]:
        """In float64 over one scale."""
        return [w.to(torch.float64) / self.scale for w in self.given]

    @cached_property
    def images(self) -> list[Tensor]:
        """W_i G_i."""
        return [w @ g for w, g in zip(self.weights, self.metrics, strict=True)]

    @cached_property
    def energy(self) -> float:
        pairs = zip(self.images, self.weights, strict=True)
        return sum(float((image * w).sum()) for image, w in pairs)

    @cached_property
    def pooled(self) -> Tensor:
        """The mean of the metrics."""
        return torch.stack(list(self.metrics)).mean(0)

    @cached_property
    def root(self) -> Tensor:
        return cholesky(self.pooled, RIDGE)

    def fitted(self, rank: int, sweeps: int, tol: float | None) -> tuple[Tensor, Tensor]:
        """left (sum_i m_i, r) and right (r, n), in the dtype of what was given."""
        stack = torch.cat(self.weights)
        _, right = _sides(stack, rank, Product(None, self.pooled))
        lefts = self.lefts(right)
        start = Descent.at([*lefts, right], self.error(lefts, right))
        ended = descend([start], self._sweep, tol, sweeps, ahead=beyond)
        *lefts, right = ended.state
        left, upper = torch.linalg.qr(torch.cat(lefts))
        across, lower = torch.linalg.qr(right.T)
        u, values, vt = torch.linalg.svd(upper @ lower.T)
        left, right = balanced(left @ u, values, vt @ across.T)
        grown, dtype = self.scale**0.5, self.given[0].dtype
        return (left * grown).to(dtype), (right * grown).to(dtype)

    def lefts(self, right: Tensor) -> list[Tensor]:
        """The best ones for R."""
        found = []
        for image, metric in zip(self.images, self.metrics, strict=True):
            inner = cholesky(right @ metric @ right.T)
            found.append(torch.cholesky_solve(right @ image.T, inner).T)
        return found

    def error(self, lefts: Sequence[Tensor], right: Tensor) -> float:
        """Relative, root mean square, of the residuals themselves."""
        lost = 0.0
        for w, metric, left in zip(self.weights, self.metrics, lefts, strict=True):
            rest = w - left @ right
            lost += float(((rest @ metric) * rest).sum())
        return ratio(lost, self.energy)

    def _sweep(self, sides: list[Tensor]) -> tuple[list[Tensor], float]:
        *lefts, right = sides
        inner = cholesky(torch.stack([left.T @ left for left in lefts]).sum(0), RIDGE)

        def normal(x: Tensor) -> Tensor:
            pairs = zip(lefts, self.metrics, strict=True)
            return torch.stack([left.T @ (left @ (x @ g)) for left, g in pairs]).sum(0)

        def precondition(residual: Tensor) -> Tensor:
            solved = torch.cholesky_solve(residual, inner)
            return torch.cholesky_solve(solved.T, self.root).T

        wanted = torch.stack([a.T @ b for a, b in zip(lefts, self.images, strict=True)]).sum(0)
        right = conjugate_gradients(normal, wanted - normal(right), right, precondition)
        lefts = self.lefts(right)
        return [*lefts, right], self.error(lefts, right)
