"""Decompositions in forms that no user can ask for yet: two sides, weights of entries, a mask.

They come through `Target` and the drivers that there are; nothing is told of them to a method.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition import fit_kron, fit_svd, fit_tt, fit_tt_matrix, fit_tucker
from tensorlrf.decomposition._quadratic import Elementwise, Marginals, Product, Quadratic
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.kron._als import KroneckerALS
from tensorlrf.decomposition.linalg import _solve
from tensorlrf.errors import UnsupportedError
from tensorlrf.factors import Factors
from tests.draws import seeded
from tests.metrics import moments_within

M, N = 12, 10
PAIR = ((3, 5), (4, 2))


def mask(m: int, n: int, share: float = 0.6, seed: int = 3) -> Tensor:
    """Zeros and ones, (m, n), so many of these."""
    draws = torch.Generator().manual_seed(seed)
    return (torch.rand(m, n, generator=draws) < share).double()


@dataclass(frozen=True)
class Both(Quadratic):
    """M D = V * D + D G: a form that the library has not, which says what it makes of a matrix and
    what it is near to, and nothing else."""

    weights: Tensor
    gram: Tensor

    def apply(self, matrix: Tensor) -> Tensor:
        return self.weights * matrix + matrix @ self.gram

    @property
    def marginals(self) -> Marginals:
        return None, self.gram


FORMS: dict[str, Callable[[], Quadratic]] = {
    "two sides": lambda: Product(moments_within(M, seed=2), moments_within(N)),
    "outputs alone": lambda: Product(moments_within(M, seed=2), None),
    "weights": lambda: Elementwise(seeded(M, N, seed=4).square()),
    "mask": lambda: Elementwise(mask(M, N)),
    "a sum": lambda: Both(seeded(M, N, seed=4).square(), moments_within(N)),
}

FITS: dict[str, Callable[..., Any]] = {
    "svd": lambda w, form: fit_svd(w, 3, gram=form),
    "kron": lambda w, form: fit_kron(w, 2, shapes=PAIR, gram=form),
    "tt_matrix": lambda w, form: fit_tt_matrix(
        w, 2, row_sizes=(3, 4), column_sizes=(5, 2), gram=form
    ),
    "tt": lambda w, form: fit_tt(w.reshape(M, 5, 2), 2, gram=form),
}


def loss(form: Quadratic, weight: Tensor, factors: Factors) -> float:
    """sqrt(<D, M D> / <W, M W>), in float64."""
    wide = weight.double().reshape(M, N)
    off = wide - factors.to(torch.float64).to_dense().reshape(M, N)
    return math.sqrt(float((off * form.apply(off)).sum() / (wide * form.apply(wide)).sum()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("word", FITS)
def test_errors_are_true_never_rise_and_end_below_the_plain_fit(
    word: str, form: str, dtype: torch.dtype
) -> None:
    weight, quadratic = seeded(M, N, dtype=dtype), FORMS[form]()
    fit = FITS[word](weight, quadratic)
    plain = FITS[word](weight, None)
    assert fit.factors.dtype == dtype
    assert fit.error == pytest.approx(loss(quadratic, weight, fit.factors), rel=1e-9)
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(fit.errors[:-1]))
    assert fit.error < loss(quadratic, weight, plain.factors)
    assert fit.shrinkage == 0.0


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    m=st.integers(2, 9), n=st.integers(2, 9), left=st.integers(2, 12), right=st.integers(2, 12),
    r=st.integers(1, 4), seed=st.integers(0, 99),
)  # fmt: skip
def test_svd_in_two_sides_is_the_svd_of_what_both_make_white(
    m: int, n: int, left: int, right: int, r: int, seed: int
) -> None:
    """Of roots R = L L^T and C = S S^T, of any rank, L^T W S; what is left are its last values."""
    weight, r = seeded(m, n, seed=seed), min(r, m, n)
    roots = seeded(m, left, seed=seed + 1), seeded(n, right, seed=seed + 2)
    rows, columns = (root @ root.T for root in roots)
    fit = fit_svd(weight, r, gram=Product(rows, columns))
    values = torch.linalg.svdvals(roots[0].T @ weight @ roots[1]).square()
    best = math.sqrt(float(values[r:].sum() / values.sum()))
    # Squares of float64 resolve an error to the root of their rounding; more where R is singular.
    assert fit.error == pytest.approx(best, rel=1e-6, abs=1e-6)


def test_svd_of_what_a_mask_shows_is_least_squares_in_every_row_and_column() -> None:
    weight, known = seeded(M, N), mask(M, N, 0.7)
    fit = fit_svd(weight, 2, gram=Elementwise(known))
    left, right = fit.factors.left, fit.factors.right
    for i in range(M):
        seen = known[i] > 0
        solved = torch.linalg.lstsq(right[:, seen].T, weight[i, seen], driver="gelsd")
        # Where sweeps end, one of them lowers the error by less than a ten-thousandth.
        off = [(weight[i, seen] - x @ right[:, seen]).norm() for x in (left[i], solved.solution)]
        assert float(off[0]) ** 2 <= float(off[1]) ** 2 + 1e-3 * float(weight.square().sum())


def test_a_mask_hides_what_it_hides() -> None:
    """A matrix of rank two comes back from six entries in ten, whatever stands in the others."""
    whole, known = seeded(30, 2) @ seeded(2, 24, seed=1), mask(30, 24)
    weight = whole + (1 - known) * 10 * seeded(30, 24, seed=2)
    fit = fit_svd(weight, 2, gram=Elementwise(known))
    # As far as sweeps have come when they gain no more, which is no rounding.
    torch.testing.assert_close(fit.factors.to_dense(), whole, rtol=1e-6, atol=1e-6)


def test_few_terms_within_an_error_of_what_a_mask_shows() -> None:
    weight, form = seeded(M, N), Elementwise(mask(M, N))
    fit = fit_svd(weight, error=0.4, gram=form)
    assert fit.error <= 0.4
    assert fit_svd(weight, fit.factors.rank - 1, gram=form).error > 0.4


def test_a_sweep_of_kron_in_two_sides_solves_least_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    """One side after the other, each by a dense problem over all of its entries."""
    monkeypatch.setattr(_solve, "CG_STEPS", 200)
    weight = seeded(M, N)
    roots = seeded(M, M, seed=1), seeded(N, N, seed=2)
    form = Product(roots[0] @ roots[0].T, roots[1] @ roots[1].T)
    als = KroneckerALS(Target.of(weight, form), PAIR)
    b = seeded(2, *PAIR[1], seed=5)
    a, better = als.sweep(torch.zeros(2, *PAIR[0], dtype=torch.float64), b)

    def white(dense: Tensor) -> Tensor:
        return (roots[0].T @ dense @ roots[1]).flatten()

    for (x, other), dense in (((a, b), als.dense), ((better, a), lambda x, y: als.dense(y, x))):
        units = torch.eye(x.numel(), dtype=torch.float64).reshape(-1, *x.shape)
        columns = torch.stack([white(dense(unit, other)) for unit in units], dim=1)
        solved = torch.linalg.lstsq(columns, white(weight)[:, None], driver="gelsd").solution
        best = float((white(weight) - columns @ solved[:, 0]).norm())
        assert float((white(weight) - white(dense(x, other))).norm()) == pytest.approx(best)


def test_outputs_that_all_count_alike_change_nothing() -> None:
    weight, gram = seeded(M, N), moments_within(N)
    alike = Product(torch.eye(M, dtype=torch.float64), gram)
    for word in ("svd", "kron"):
        one, other = (FITS[word](weight, form) for form in (Product(None, gram), alike))
        assert one.error == pytest.approx(other.error, rel=1e-3)


def test_what_is_not_served_is_refused_by_name() -> None:
    weight, form = seeded(M, N), Elementwise(mask(M, N))
    with pytest.raises(UnsupportedError, match="fitted to second moments of inputs"):
        fit_tucker(weight, (3, 3), modes=(0, 1), gram=form)
    with pytest.raises(UnsupportedError, match="differentiable=True is not served"):
        fit_svd(weight.requires_grad_(), 3, gram=form, differentiable=True)
