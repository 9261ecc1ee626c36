"""Which way to a truncated SVD, and a Krylov space that knows when it is done."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition.linalg._bidiagonal import Bidiagonal
from tensorlrf.decomposition.linalg._krylov import DEVIATION, EXCESS, Watch, krylov_svd, steep
from tensorlrf.decomposition.linalg._solver import (
    Choice,
    choose,
    exact_seconds,
    product_seconds,
    reserve,
)
from tensorlrf.decomposition.svd._svd import fit_svd, svd

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
    assume(choice.solver == "krylov")
    patient = replace(choice, products=PATIENT)
    found = krylov_svd(matrix, r, patient, torch.Generator().manual_seed(seed))
    if found is None:  # the space would have filled the matrix
        assert kind in ("flat", "slow", "two steps", "half above noise", "step over noise") or r > 8
        return
    # Of r rank-one terms in either basis, each rounded.
    assert excess(matrix, found.left, found.values, found.right, values[r:]) <= 8 * math.sqrt(r)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rank_above_that_of_the_matrix_is_served(seed: int, dtype: torch.dtype) -> None:
    """20 directions beside those that fresh vectors are looked at with: nothing but rounding."""
    n, r = 400, 40
    matrix = matrix_of(first(20, torch.arange(1, n + 1)).double(), n, seed, dtype)
    choice = replace(choose((n, n), r, dtype, forced=True), products=PATIENT)
    found = krylov_svd(matrix, r, choice, torch.Generator().manual_seed(seed))
    assert found is not None
    assert excess(matrix, found.left, found.values, found.right, torch.zeros(1)) <= 8 * r**0.5


@pytest.mark.parametrize("over", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_equal_singular_values_are_all_found(over: float, dtype: torch.dtype) -> None:
    """48 of them, where a block of 32 can hold no more than 32 and shows no sign of the others."""
    n, r = 500, 48
    values = torch.maximum(first(r, torch.arange(1, n + 1)), over * noise_of(n))
    matrix = matrix_of(values, n, 1, dtype)
    choice = replace(choose((n, n), r, dtype, forced=True), products=PATIENT)
    assert choice.width < r
    found = krylov_svd(matrix, r, choice, torch.Generator().manual_seed(0))
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
        while not (space.full or space.exhausted):
            ritz = space.ritz()
            doubt = watch.look(ritz, space.products, space.beyond)
            missing = float(values[:r].sum()) - float(ritz[:r].sum())
            allowed = 2 * EXCESS * (float(values.sum()) - float(ritz[:r].sum()))
            assert doubt > 1 or missing <= allowed, (kind, space.products)
            space.advance()


def test_the_doubt_is_no_less_where_looks_skip_products() -> None:
    """As of large spaces: three looks in a row, then one at every other product."""
    n, r, width = 260, 12, 24
    for kind, spectrum in SPECTRA.items():
        values = spectrum(n, r, torch.arange(1, n + 1, dtype=torch.float64))
        values = values.sort(descending=True).values.square()
        if not float(values[r:].sum()):
            continue
        for first_skip in (4, 5):
            space = Bidiagonal(values.sqrt().diag(), width, torch.Generator().manual_seed(0))
            watch = Watch(r, float(values.sum()), torch.finfo(torch.float64).eps)
            while not (space.full or space.exhausted):
                if space.products <= first_skip or (space.products - first_skip) % 2 == 0:
                    ritz = space.ritz()
                    doubt = watch.look(ritz, space.products)
                    missing = float(values[:r].sum()) - float(ritz[:r].sum())
                    allowed = 2 * EXCESS * (float(values.sum()) - float(ritz[:r].sum()))
                    assert doubt > 1 or missing <= allowed, (kind, space.products)
                space.advance()


@pytest.mark.parametrize("tail", [0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-2])
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e18])
def test_what_a_sketch_leaves_ends_it_only_where_that_is_rounding(
    tail: float, many: bool, scale: float
) -> None:
    """Behind r values, a tail of this norm: in one direction more, or in all others."""
    n, r = 260, 12
    j = torch.arange(1, n + 1, dtype=torch.float64)
    values = first(r, j) / j.sqrt()
    spread = (first(n, j) if many else first(r + 1, j)) - first(r, j)
    values += tail * spread / float(spread.norm())
    for seed in range(4):
        matrix = matrix_of(values, 300, seed, torch.float32)
        fit = fit_svd(matrix * scale, r, random_state=seed, solver="krylov")
        norm = float(values.norm())
        left, right = fit.factors.left.double(), fit.factors.right.double() / scale
        residual = float((matrix.double() - left @ right).norm())
        eps = torch.finfo(torch.float32).eps
        assert residual <= (1 + EXCESS) * tail + 8 * math.sqrt(r) * eps * norm
        # One direction more is in the sketch. All others are rounding or not; at 5 eps of the norm
        # either is right.
        if not many or tail != 1e-6:
            assert ("2 products" in fit.reason) == (not many or tail < 1e-6)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    kind=st.sampled_from(["exactly low rank", "lower rank", "steep", "exponential"]),
    r=st.sampled_from([1, 2, 6, 16]),
    seed=st.integers(0, 99),
)
def test_random_vectors_bound_what_a_basis_leaves(kind: str, r: int, seed: int) -> None:
    n = 160
    values = SPECTRA[kind](n, r, torch.arange(1, n + 1, dtype=torch.float64))
    matrix = matrix_of(values.sort(descending=True).values, 200, seed, torch.float64)
    space = Bidiagonal(matrix, r + 4, torch.Generator().manual_seed(seed))
    # Only where that is little is it of use.
    assert math.isfinite(space.beyond) or "rank" not in kind
    left = float((matrix - space.left.T @ (space.left @ matrix)).square().sum())
    assert left <= DEVIATION * space.beyond + 1e-28 * float(values.square().sum())


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
            assert torch.allclose(
                space.left.T @ torch.from_numpy(space.middle) @ space.right, _seen(space)
            )
    assert space.products == 9


def _seen(space: Bidiagonal) -> Tensor:
    seen: Tensor = space.left.T @ (space.left @ space.matrix)
    return seen


# ---- products: as many as it takes -----------------------------------------------------------


def vectors(matrix: Tensor, r: int) -> float:
    """That went through the matrix, for each direction that was asked for."""
    choice = choose((int(matrix.shape[0]), int(matrix.shape[1])), r, matrix.dtype)
    assert choice.solver == "krylov"
    found = krylov_svd(matrix, r, choice, torch.Generator().manual_seed(0))
    assert found is not None
    return found.products * choice.width / r


def test_an_easy_spectrum_takes_few_products_and_a_flat_one_more() -> None:
    n, r = 500, 12
    j = torch.arange(1, n + 1, dtype=torch.float64)
    took = {
        kind: vectors(
            matrix_of(SPECTRA[kind](n, r, j).sort(descending=True).values, n, 0, torch.float32), r
        )
        for kind in ("exactly low rank", "noise floor", "exponential", "polynomial", "root", "flat")
    }
    assert took["exactly low rank"] < 3
    assert took["noise floor"] < 8
    assert took["exponential"] < 10
    assert took["polynomial"] < 10
    assert took["root"] < 12
    assert took["root"] < took["flat"] < 24


@pytest.mark.parametrize("kind", ["flat", "root", "noise floor", "step"])
def test_blocks_are_wide_where_the_spectrum_is_steep_and_narrow_where_the_way_is_long(
    kind: str,
) -> None:
    n, r = 500, 48
    values = SPECTRA[kind](n, r, torch.arange(1, n + 1, dtype=torch.float64))
    matrix = matrix_of(values.sort(descending=True).values, n, 0, torch.float32)
    choice = choose((n, n), r, torch.float32)
    space = Bidiagonal(matrix, choice.sketch, torch.Generator().manual_seed(0))
    total = float(values.square().sum())
    assert steep(space.ritz(), r, total, n) == (kind in ("noise floor", "step"))
    assert choice.width < r <= choice.sketch
    narrow = space.narrowed(choice.width)
    # It begins within what the sketch holds, and has met the matrix as often.
    assert narrow.products == space.products + 2
    held = narrow.left @ space.matrix @ space.right.T @ space.right
    assert float(held.norm()) > 0.5 * float((narrow.left @ space.matrix).norm())


def test_a_space_of_which_nothing_more_comes_is_exhausted() -> None:
    """Two distinct singular values: all that a block can hold of them is there after two pairs."""
    values = first(8, torch.arange(1, 201, dtype=torch.float64)) + 0.1
    space = Bidiagonal(
        matrix_of(values, 230, 0, torch.float32), 8, torch.Generator().manual_seed(0)
    )
    while not space.exhausted:
        assert space.products < 6
        space.advance()
    assert space.ritz()[:8] == pytest.approx(1.21, rel=1e-5)
    assert space.ritz()[8:] == pytest.approx(0.01, rel=1e-3)


def test_a_spectrum_that_takes_too_many_is_left_to_the_exact_way() -> None:
    matrix = matrix_of(noise_of(300), 300, 0, torch.float32)
    impatient = Choice("krylov", 20, 1, 20)
    assert krylov_svd(matrix, 8, impatient, torch.Generator().manual_seed(0)) is None
    # A space that would fill the matrix, likewise; and `svd` says so.
    fit = fit_svd(torch.ones(100, 100).tril(), 20, solver="krylov")
    assert "eigh" in fit.reason
    least = torch.linalg.svdvals(torch.ones(100, 100).tril().double())
    assert fit.error == pytest.approx(float(least[20:].norm() / least.norm()), rel=1e-5)


# ---- the choice --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "r", "solver"),
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
def test_chosen_by_work(shape: tuple[int, int], r: int, solver: str) -> None:
    assert choose(shape, r, torch.float32).solver == solver
    assert choose(shape[::-1], r, torch.float32) == choose(shape, r, torch.float32)
    exact = "exact" if solver == "eigh" else "krylov"
    assert choose(shape, r, torch.float64).solver == exact


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
    assert choice.solver in str(choice)
    wider = choose((m + 1, n + 1), r, dtype, threads)
    if choice.solver == "krylov":
        assert choice.width <= r + reserve(r) + 3
        assert wider.solver == "krylov"
        # What is given up for the exact way costs no more than that.
        spent = choice.products * product_seconds((m, n), r, choice.width, dtype, threads)
        assert spent <= exact_seconds((m, n), dtype, threads)
    else:
        assert choice.solver == ("exact" if dtype == torch.float64 else "eigh")


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
    assert "eigh" in fit_svd(weight, 4, solver="eigh").reason
    assert "exact" in fit_svd(weight, 4, solver="exact").reason
    # An error asks for the whole spectrum, and a graph for its derivative.
    assert "eigh" in fit_svd(weight, error=0.9).reason
    small = weight[:300, :300].double().requires_grad_()
    assert "exact" in fit_svd(small, 4, differentiable=True).reason
