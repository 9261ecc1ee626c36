"""Sums of Kronecker products in the metric of the inputs, by alternating least squares.

For D = W - sum of kron(a_s, b_s) the mean of |D x|^2 over the inputs is tr(D G D^T). It is
quadratic in the a's for fixed b's and the other way round (Van Loan & Pitsianis 1993, section 4,
for the plain norm). With columns ordered (j1, j2, tap) every row i1 of the a's has the same normal
matrix, sum over c, c' of (b_s^T b_t)[c, c'] G[(j1, c), (j1', c')] with c = (j2, tap); likewise
every row i2 of the b's, with (a_s^T a_t)[j1, j1'] in the place of that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import Descent, beyond, descend
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import working_dtype
from tensorlrf.decomposition._search import doubled, out_of_reach, smallest_within
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.kron._gradients import image_cost, marginals, preconditioner
from tensorlrf.decomposition.kron._shapes import Pair, rearranged
from tensorlrf.decomposition.linalg._gram import identity
from tensorlrf.decomposition.linalg._solve import cholesky
from tensorlrf.decomposition.linalg._spectrum import ratio
from tensorlrf.factors import KroneckerSum

UNKNOWNS = 2048
"""Unknowns of a row that are solved for at once; more are taken some terms after the others."""

PRODUCTS = 1 << 24
"""Entries of b_s^T b_t held at once: 128 MB."""

RIDGE = 1e-10
"""Of a proximal step, relative to the largest diagonal entry of the normal matrix: it keeps what
the inputs do not see from drifting, and floors nothing since every sweep starts anew."""

EXACT = 1e-10
"""Squared relative error below which a square multiplied out is noise."""


class KroneckerALS:
    """Alternating least squares for a target (m, n taps): terms a (s, m1, n1), b (s, m2, n2 taps).

    Normal matrices are made where the rows of D do not meet in the target, tr(D G D^T). In any
    other form <D, M D> what M makes of the terms is taken, and nothing else.
    """

    def __init__(self, target: Target[KroneckerSum], pair: Pair) -> None:
        (self.m1, self.n1), (self.m2, n2) = pair
        self.target, self.pair = target, pair
        self.c = target.shape[1] // self.n1
        self.taps = self.c // n2
        self.image = self._by_terms(target.image)  # (m1 n1, m2 c)
        rows, columns = target.marginals
        if columns is None:
            columns = identity(target.shape[1], self.image)
        over_rows = (None, None) if rows is None else marginals(rows, self.m1)
        over_columns = marginals(columns, self.n1)
        self.of_a, self.of_b = zip(over_rows, over_columns, strict=True)
        self.couplings: Tensor | None = None
        if target.rows_apart:
            by_sides = columns.view(self.n1, self.c, self.n1, self.c)
            self.couplings = by_sides.permute(1, 3, 0, 2).reshape(self.c**2, self.n1**2)

    def sweep(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Better a's for the b's, and then better b's for these; the error does not rise."""
        s = a.shape[0]

        def over_b(matrix: Tensor) -> Tensor:
            """The adjoint of the terms as a map of the a's."""
            return (self._by_terms(matrix) @ b.reshape(s, -1).T).T.reshape(a.shape)

        if self.couplings is None or self.many_terms(s, self.n1, self.m2):
            near = preconditioner(a, b, self.of_a, self.of_b)
            a = self.target.improved(a, lambda x: self.dense(x, b), over_b, near)
        else:
            wanted = over_b(self.target.image)
            a = improved(a, wanted.transpose(0, 1), b, self.couplings)

        def over_a(matrix: Tensor) -> Tensor:
            return (a.reshape(s, -1) @ self._by_terms(matrix)).reshape(b.shape)

        if self.couplings is None or self.many_terms(s, self.c, self.m1):
            near = preconditioner(b, a, self.of_b, self.of_a)
            b = self.target.improved(b, lambda x: self.dense(a, x), over_a, near)
        else:
            wanted = over_a(self.target.image)
            b = improved(b, wanted.transpose(0, 1), a, self.couplings.T)
        return a, b

    def many_terms(self, s: int, w: int, rows: int) -> bool:
        """Whether conjugate gradients take less than the normal matrix of s terms of w columns,
        which sums over `rows` of the other side."""
        m, n = self.target.shape
        v = n // w
        if s * v * v > PRODUCTS:
            return True
        normal = s**2 * v**2 * (rows + w**2) + s * w * min(s * w, UNKNOWNS) ** 2 / 3
        # Products of many small matrices run at a quarter of the speed of few large ones.
        return 4 * normal > image_cost(s, m, n)

    def rel_error(self, a: Tensor, b: Tensor) -> float:
        """Of the terms as they are, see `Target.rel_error`."""
        a, b = a.detach().to(torch.float64), b.detach().to(torch.float64)
        s, norm = a.shape[0], self.target.norm
        few = s * s < self.target.shape[0] and (s * max(self.c, self.n1)) ** 2 <= PRODUCTS
        if few and self.couplings is not None:
            cross = (a.reshape(s, -1) @ self.image * b.reshape(s, -1)).sum()
            left, right = products(a, a).reshape(s * s, -1), products(b, b).reshape(s * s, -1)
            squared = norm - 2 * cross + (right @ self.couplings * left).sum()
            if squared >= EXACT * norm:
                return ratio(squared, norm)
        return self.target.rel_error(self.target.matrix - self.dense(a, b))

    def dense(self, a: Tensor, b: Tensor) -> Tensor:
        """The sum of the terms as a matrix (m, n taps)."""
        whole = a.reshape(a.shape[0], -1).T @ b.reshape(b.shape[0], -1)
        split = whole.reshape(self.m1, self.n1, self.m2, self.c)
        return split.transpose(1, 2).reshape(self.m1 * self.m2, -1)

    def _by_terms(self, matrix: Tensor) -> Tensor:
        return rearranged(matrix.reshape(len(matrix), -1, self.taps), self.pair)


def improved(x: Tensor, wanted: Tensor, other: Tensor, couplings: Tensor) -> Tensor:
    """Least squares for one side x (s, rows, w), some terms after the others.

    wanted (rows, s, w) is the right-hand side, `other` (s, rows', v) the other side, and
    couplings (v v, w w) the metric. A step is taken only where it lowers the error.
    """
    s, _, w = x.shape
    v = other.shape[2]
    x = x.clone()
    step = max(1, min(UNKNOWNS // w, PRODUCTS // (s * v * v)))  # see many_terms for s v v
    for some in torch.split(torch.arange(s, device=x.device), step):
        k = len(some)
        pairs = products(other[some], other).reshape(k * s, v * v)
        normal = (pairs @ couplings).reshape(k, s, w, w).transpose(1, 2)  # (k, w, s, w)
        mine = normal[:, :, some].reshape(k * w, k * w)
        mine = (mine + mine.T) / 2
        fitted = x.transpose(0, 1).reshape(-1, s * w) @ normal.reshape(k * w, s * w).T
        gradient = wanted[:, some].reshape(-1, k * w) - fitted  # (rows, k w)
        change = torch.cholesky_solve(gradient.T, cholesky(mine, RIDGE)).T
        gain = (change * (2 * gradient - change @ mine)).sum()
        if gain > 0:
            x[some] += change.reshape(-1, k, w).transpose(0, 1)
    return x


def products(x: Tensor, y: Tensor) -> Tensor:
    """x_k^T y_s for all terms: (k, rows, v), (s, rows, v) to (k, s, v, v)."""
    (k, rows, v), s = x.shape, y.shape[0]
    both = x.transpose(1, 2).reshape(k * v, rows) @ y.transpose(0, 1).reshape(rows, s * v)
    return both.reshape(k, v, s, v).transpose(1, 2)


def alternate(
    als: KroneckerALS, a: Tensor, b: Tensor, n_iter_max: int, tol: float | None
) -> Descent[Sequence[Tensor]]:
    """Sweeps from the terms a (s, m1, n1) and b (s, m2, c); where they end the terms are balanced
    and by energy."""

    def sweep(terms: Sequence[Tensor]) -> tuple[Sequence[Tensor], float]:
        tried = als.sweep(*terms)
        return tried, als.rel_error(*tried)

    wide = a.to(torch.float64), b.to(torch.float64)
    start: Descent[Sequence[Tensor]] = Descent.at(wide, als.rel_error(*wide))
    run = descend([start], sweep, tol, n_iter_max, ahead=beyond, enough=EXACT**0.5)
    return replace(run, state=balanced_terms(*run.state))


def balanced_terms(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The same sum, as the SVD of its rearrangement has it: orthogonal terms of equal lengths."""
    s = a.shape[0]
    left, left_upper = torch.linalg.qr(a.reshape(s, -1).T)
    right, right_upper = torch.linalg.qr(b.reshape(s, -1).T)
    u, values, vt = torch.linalg.svd(left_upper @ right_upper.T)
    roots = values.sqrt()
    new_a, new_b = (left @ (u * roots)).T, (right @ (vt.T * roots)).T
    return new_a.reshape(a.shape), new_b.reshape(b.shape)


def fewest(
    solve: Callable[[int], Fit[KroneckerSum]], limit: int, error: float, dtype: torch.dtype
) -> Fit[KroneckerSum]:
    """The fewest terms, of 1 to `limit`, that `solve` brings within `error`: one term fewer was
    tried and is not within."""
    floor = torch.finfo(working_dtype(dtype)).eps
    # What is left of an exact sum of this many terms: below it any number of terms is as good.
    within = max(error, 64 * floor if error == 0 else floor)
    found = smallest_within(solve, within, doubled(limit))
    if not found.within:
        reason = out_of_reach(error, found.fit.error, dtype, "the terms", f"all {limit}")
        return replace(found.fit, converged=False, reason=reason)
    reason = f"{found.rank} terms are the fewest within {within}, {found.fit.reason}"
    return replace(found.fit, converged=found.fit.error <= error, reason=reason)
