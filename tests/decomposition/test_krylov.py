"""Which way to a truncated SVD, and a Krylov space that knows when it is done."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition._krylov import EXCESS, Bidiagonal, Watch, krylov_svd
from tensorlrf.decomposition._solver import Choice, choose, exact_seconds, product_seconds, reserve
from tensorlrf.decomposition._svd import fit_svd, svd

DTYPES = [torch.float32, torch.float64]
PATIENT = 10**6


def noise_of(n: int) -> Tensor:
    """Singular values of a Gaussian matrix (n, n), the largest one 1."""
    draws = torch.Generator().manual_seed(n)
    values: Tensor = torch.linalg.svdvals(torch.randn(n, n, generator=draws, dtype=torch.float64))
    return values / values[0]


def first(count: int, j: Tensor) -> Tensor:
    return (j <= count).double()


SPECTRA: dict[str, Callable[[int, int, Tensor], Tensor]] = {
    "flat": lambda n, r, j: noise_of(n),
    "constant": lambda n, r, j: torch.ones_like(j),
    "slow": lambda n, r, j: j**-0.25,
    "root": lambda n, r, j: j**-0.5,
    "polynomial": lambda n, r, j: 1 / j,
    "steep": lambda n, r, j: j**-3.0,
    "exponential": lambda n, r, j: torch.exp(-j / r),
    "noise floor": lambda n, r, j: first(r, j) * 3 + noise_of(n),
    "half above noise": lambda n, r, j: first((r + 1) // 2, j) * 3 + noise_of(n),
    "falls to noise": lambda n, r, j: torch.exp(-j / r) + 0.1 * noise_of(n),
    "exactly low rank": lambda n, r, j: first(r, j) * (1 + 1 / j),
    "lower rank": lambda n, r, j: first((r + 1) // 2, j),
    "step": lambda n, r, j: first(r, j) + 0.1,
    "wide step": lambda n, r, j: first(2 * r, j) + 0.1,
    "two steps": lambda n, r, j: first(r // 2, j) + first(3 * r, j) + 1,
    "step over noise": lambda n, r, j: torch.maximum(first(r, j), 0.8 * noise_of(n)),
    "cluster": lambda n, r, j: first(2 * r, j) * (1 + 0.1 * torch.cos(j)) + 0.01 * noise_of(n),
}


def matrix_of(values: Tensor, m: int, seed: int, dtype: torch.dtype) -> Tensor:
    """(m, n) with these n <= m singular values."""
    draws = torch.Generator().manual_seed(seed)
    n = len(values)
    left, right = (
        torch.linalg.qr(torch.randn(rows, n, generator=draws, dtype=torch.float64))[0]
        for rows in (m, n)
    )
    return ((left * values) @ right.T).to(dtype)


def excess(matrix: Tensor, left: Tensor, values: Tensor, right: Tensor, best: Tensor) -> float:
    """How far the relative residual is above (1 + EXCESS) times that of the `best` values left
    out, in roundings of the dtype."""
    wide = matrix.double()
    residual = float((wide - (left.double() * values.double()) @ right.double()).norm())
    least = float(best.norm()) * (1 + EXCESS)
    return (residual - least) / float(wide.norm()) / torch.finfo(matrix.dtype).eps


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    kind=st.sampled_from(sorted(SPECTRA)),
    n=st.sampled_from([150, 220, 300]),
    tall=st.booleans(),
    r=st.sampled_from([1, 3, 8, 16, 40]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_what_is_certified_is_within_a_thousandth(
    kind: str, n: int, tall: bool, r: int, dtype: torch.dtype, seed: int
) -> None:
    values = SPECTRA[kind](n, r, torch.arange(1, n + 1, dtype=torch.float64))
    values = values.sort(descending=True).values
    matrix = matrix_of(values, n + 130 * tall, seed, dtype)
    matrix = matrix if seed % 2 else matrix.T
    choice = choose((int(matrix.shape[0]), int(matrix.shape[1])), r, dtype, forced=True)
    assume(choice.method == "krylov")
    patient = Choice(choice.method, choice.width, PATIENT)
    found = krylov_svd(matrix, r, patient, torch.Generator().manual_seed(seed))
    if found is None:  # the space would have filled the matrix
        assert kind in ("flat", "slow", "two steps", "half above noise", "step over noise") or r > 8
        return
    # Of r rank-one terms in either basis, each rounded.
    assert excess(matrix, found.left, found.values, found.right, values[r:]) <= 8 * math.sqrt(r)


@pytest.mark.parametrize("over", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_equal_singular_values_are_all_found(over: float, dtype: torch.dtype) -> None:
    """48 of them, where a block of 32 can hold no more than 32 and shows no sign of the others."""
    n, r = 500, 48
    values = torch.maximum(first(r, torch.arange(1, n + 1)), over * noise_of(n))
    matrix = matrix_of(values, n, 1, dtype)
    width = choose((n, n), r, dtype).width
    assert width < r
    found = krylov_svd(
        matrix, r, Choice("krylov", width, PATIENT), torch.Generator().manual_seed(0)
    )
    assert found is not None
    least = values.sort(descending=True).values[r:]
    assert excess(matrix, found.left, found.values, found.right, least) <= 8 * math.sqrt(r)


def test_the_doubt_is_no_less_than_what_is_missing() -> None:
    """At every look, not only the last: what it says is missing, is at the most."""
    n, r = 260, 12
    for kind, spectrum in SPECTRA.items():
        values = spectrum(n, r, torch.arange(1, n + 1, dtype=torch.float64))
        values = values.sort(descending=True).values.square()
        if not float(values[r:].sum()):
            continue
        space = Bidiagonal(values.sqrt().diag(), 24, torch.Generator().manual_seed(0))
        watch = Watch(r, float(values.sum()), torch.finfo(torch.float64).eps)
        while not space.full:
            ritz = space.ritz()
            doubt = watch.look(ritz)
            missing = float(values[:r].sum()) - float(ritz[:r].sum())
            allowed = 2 * EXCESS * (float(values.sum()) - float(ritz[:r].sum()))
            assert doubt > 1 or missing <= allowed, (kind, space.products)
            space.advance()


def test_bases_are_orthonormal_and_hold_what_they_claim() -> None:
    matrix = matrix_of(torch.linspace(1, 0.1, 120, dtype=torch.float64), 150, 0, torch.float64)
    space = Bidiagonal(matrix, 8, torch.Generator().manual_seed(0))
    for step in range(6):
        if step == 3:
            space.draw()
        space.advance()
        for basis in (space.left, space.right):
            eye = torch.eye(len(basis), dtype=torch.float64)
            assert torch.allclose(basis @ basis.T, eye, atol=1e-13)
        if space.met[0] == len(space.left):
            assert torch.allclose(space.left.T @ space.middle @ space.right, _seen(space))
    assert space.products == 9


def _seen(space: Bidiagonal) -> Tensor:
    seen: Tensor = space.left.T @ (space.left @ space.matrix)
    return seen


# ---- products: as many as it takes -----------------------------------------------------------


def products(matrix: Tensor, r: int) -> int:
    choice = choose((int(matrix.shape[0]), int(matrix.shape[1])), r, matrix.dtype)
    assert choice.method == "krylov"
    found = krylov_svd(matrix, r, choice, torch.Generator().manual_seed(0))
    assert found is not None
    return found.products


def test_an_easy_spectrum_takes_few_products_and_a_flat_one_more() -> None:
    n, r = 500, 12
    j = torch.arange(1, n + 1, dtype=torch.float64)
    took = {
        kind: products(
            matrix_of(SPECTRA[kind](n, r, j).sort(descending=True).values, n, 0, dtype), r
        )
        for kind in ("exactly low rank", "noise floor", "exponential", "polynomial", "root", "flat")
        for dtype in (torch.float32,)
    }
    assert took["exactly low rank"] <= 4
    assert took["noise floor"] <= 5
    assert took["exponential"] <= 6
    assert took["polynomial"] <= 6
    assert took["root"] <= 7
    assert took["root"] < took["flat"] <= 12


def test_a_spectrum_that_takes_too_many_is_left_to_the_exact_way() -> None:
    matrix = matrix_of(noise_of(300), 300, 0, torch.float32)
    impatient = Choice("krylov", 20, 1)
    assert krylov_svd(matrix, 8, impatient, torch.Generator().manual_seed(0)) is None
    # A space that would fill the matrix, likewise; and `svd` says so.
    fit = fit_svd(torch.ones(100, 100).tril(), 20, method="krylov")
    assert "eigh" in fit.reason
    least = torch.linalg.svdvals(torch.ones(100, 100).tril().double())
    assert fit.error == pytest.approx(float(least[20:].norm() / least.norm()), rel=1e-5)


# ---- the choice --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "r", "method"),
    [
        ((2000, 500), 16, "krylov"),
        ((4096, 4096), 64, "krylov"),
        ((4097, 4097), 64, "krylov"),
        ((1024, 1024), 4, "krylov"),
        ((300, 400), 4, "krylov"),
        ((768, 768), 192, "eigh"),
        ((96, 96), 8, "eigh"),
        ((60, 45), 8, "eigh"),
        ((5000, 20), 3, "eigh"),
        ((4096, 4096), 2000, "eigh"),
    ],
)
def test_chosen_by_work(shape: tuple[int, int], r: int, method: str) -> None:
    assert choose(shape, r, torch.float32).method == method
    assert choose(shape[::-1], r, torch.float32) == choose(shape, r, torch.float32)
    exact = "exact" if method == "eigh" else "krylov"
    assert choose(shape, r, torch.float64).method == exact


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    m=st.integers(1, 6000),
    n=st.integers(1, 6000),
    r=st.integers(1, 300),
    dtype=st.sampled_from(DTYPES),
    threads=st.sampled_from([1, 2, 16]),
)
def test_a_choice_is_a_value_and_has_no_cliff(
    m: int, n: int, r: int, dtype: torch.dtype, threads: int
) -> None:
    r = min(r, m, n)
    choice = choose((m, n), r, dtype, threads)
    assert choice == choose((m, n), r, dtype, threads)
    assert choice.method in str(choice)
    wider = choose((m + 1, n + 1), r, dtype, threads)
    if choice.method == "krylov":
        assert choice.width <= r + reserve(r) + 3
        assert wider.method == "krylov"
        # What is given up for the exact way costs no more than that.
        spent = choice.products * product_seconds((m, n), choice.width, dtype, threads)
        assert spent <= exact_seconds((m, n), dtype, threads)
    else:
        assert choice.method == ("exact" if dtype == torch.float64 else "eigh")


def test_auto_repeats_and_says_what_it_did() -> None:
    weight = torch.randn(400, 500, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    one, other = fit_svd(weight, 4), fit_svd(weight, 4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.factors.left, other.factors.left)
    assert torch.equal(svd(weight, 4).right, one.factors.right)
    assert "krylov" in one.reason
    assert "products" in one.reason
    assert not torch.equal(fit_svd(weight, 4, random_state=1).factors.left, one.factors.left)
    assert "eigh" in fit_svd(weight, 4, method="eigh").reason
    assert "exact" in fit_svd(weight, 4, method="exact").reason
    # An error asks for the whole spectrum, and a graph for its derivative.
    assert "eigh" in fit_svd(weight, error=0.9).reason
    small = weight[:300, :300].double().requires_grad_()
    assert "exact" in fit_svd(small, 4, differentiable=True).reason
