"""Sums of Kronecker products: optimality, planted sums, shapes, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition.kron import _solve as _kron_solve
from tensorlrf.decomposition.kron._kron import fit_kron, kron
from tensorlrf.decomposition.kron._shapes import Pair
from tensorlrf.errors import ArgumentError, RankError, ShapeError, TensorlrfWarning
from tensorlrf.factors import KroneckerSum
from tests.draws import seeded

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def planted(s: int, pair: Pair, *kernel: int, seed: int = 0) -> Tensor:
    """A sum of s terms in float64, written with torch.kron."""
    a, b = seeded(s, *pair[0], seed=seed), seeded(s, *pair[1], *kernel, seed=seed + 1)
    a = a.reshape(*a.shape, *(1 for _ in kernel))
    return torch.stack([torch.kron(x, y) for x, y in zip(a, b, strict=True)]).sum(0)


def singular_values(weight: Tensor, pair: Pair) -> Tensor:
    """Of the rearrangement, block by block: row (i1, j1) holds block i1, j1 of the weight."""
    (m1, n1), (m2, n2) = pair
    blocks = [
        weight[i * m2 : (i + 1) * m2, j * n2 : (j + 1) * n2].reshape(-1)
        for i in range(m1)
        for j in range(n1)
    ]
    values: Tensor = torch.linalg.svdvals(torch.stack(blocks).double())
    return values


def discarded(weight: Tensor, pair: Pair, s: int) -> float:
    values = singular_values(weight, pair)
    return float(values[s:].norm() / values.norm())


def residual(weight: Tensor, factors: KroneckerSum) -> float:
    wide = weight.double()
    return float((wide - factors.to(torch.float64).to_dense()).norm() / wide.norm())


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    one=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    other=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    kernel=st.sampled_from([(), (3,), (3, 2), (2, 1, 2)]),
    s=st.integers(1, 25),
    dtype=st.sampled_from(DTYPES),
    solver=st.sampled_from(["auto", "exact", "eigh"]),
)
def test_residual_is_the_discarded_energy_of_the_rearrangement(
    one: tuple[int, int],
    other: tuple[int, int],
    kernel: tuple[int, ...],
    s: int,
    dtype: torch.dtype,
    solver: str,
) -> None:
    shape = (one[0] * other[0], one[1] * other[1], *kernel)
    weight = seeded(*shape, dtype=dtype)
    least = min(math.prod(one), math.prod(other) * math.prod(kernel))
    s = min(s, least)
    fit = fit_kron(weight, s, shapes=(one, other), solver=solver)
    factors = fit.factors
    assert factors.shape == shape
    assert factors.a.shape == (s, *one)
    assert factors.b.shape == (s, *other, *kernel)
    assert factors.dtype == dtype
    # As for svd: both sides are rounded, and a product sums s of them.
    rounding = 4 * torch.finfo(dtype).eps * math.sqrt(s)
    if dtype in (torch.float32, torch.float64):
        rounding *= least + 4
    best = discarded(weight, (one, other), s)
    reached = residual(weight, factors)
    assert best - 1e-12 <= reached <= math.hypot(best, rounding) + 1e-12
    working = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    assert fit.error == pytest.approx(reached, rel=1e-3, abs=8 * s * working)


@pytest.mark.parametrize(
    ("pair", "kernel"),
    [(((6, 4), (5, 7)), ()), (((15, 7), (2, 4)), (3, 3)), (((10, 7), (3, 4)), (5,))],
)
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_planted_terms_are_found(
    pair: Pair, kernel: tuple[int, ...], dtype: torch.dtype, within: float
) -> None:
    weight = planted(3, pair, *kernel).to(dtype)
    given_shapes = fit_kron(weight, 3, shapes=pair)
    assert given_shapes.error <= within
    assert residual(weight, given_shapes.factors) <= within
    searched = fit_kron(weight, 3, random_state=0)
    assert searched.factors.a.shape == (3, *pair[0])
    assert searched.error <= within
    assert "best of" in searched.reason
    by_error = fit_kron(weight, error=1e-3, random_state=0)
    assert by_error.factors.a.shape == (3, *pair[0])


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_a_sketch_finds_planted_terms(
    dtype: torch.dtype, within: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_kron_solve, "LARGE", 300)
    monkeypatch.setattr(_kron_solve, "FIRST", 4)
    pair = ((18, 17), (17, 19))  # a rearrangement of 306 x 323
    weight = planted(3, pair).to(dtype)
    fit = fit_kron(weight, 3, shapes=pair, random_state=0)
    assert "krylov" in fit.reason
    assert fit.error <= within
    # An error goes by growing sketches, cut to the fewest terms.
    by_error = fit_kron(weight, error=0.01, shapes=pair, random_state=0)
    assert by_error.factors.rank == 3
    assert by_error.error <= within
    assert by_error.error == pytest.approx(residual(weight, by_error.factors), rel=1e-2, abs=1e-15)
    # Whether or not the error is reported.
    assert torch.equal(kron(weight, error=0.01, shapes=pair, random_state=0).a, by_error.factors.a)
    some = fit_kron(weight, error=0.8, shapes=pair, random_state=0)
    values = singular_values(weight, pair)[:4]
    tails = values.flip(0).square().cumsum(0).flip(0).sqrt() / values.norm()
    assert some.factors.rank == int((tails > 0.8).sum())
    assert some.error <= 0.8


def test_an_error_that_takes_many_terms_leaves_the_sketch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kron_solve, "LARGE", 300)
    pair = ((18, 18), (18, 18))
    weight = seeded(324, 324, dtype=torch.float32)
    fit = fit_kron(weight, error=0.5, shapes=pair)
    assert "krylov" not in fit.reason
    assert fit.error <= 0.5 < discarded(weight, pair, fit.factors.rank - 1)


def test_randomized_is_within_a_thousandth() -> None:
    pair = ((8, 9), (10, 7))
    scales = 0.8 ** torch.arange(30, dtype=torch.float64)
    weight = KroneckerSum(seeded(30, 8, 9) * scales[:, None, None], seeded(30, 10, 7)).to_dense()
    for seed in range(3):
        fit = fit_kron(weight, 6, shapes=pair, solver="randomized", random_state=seed)
        assert fit.error <= 1.001 * discarded(weight, pair, 6)


def test_each_side_takes_the_root_of_the_singular_value() -> None:
    pair = ((4, 3), (5, 4))
    weight = seeded(20, 12)
    factors = kron(weight, 5, shapes=pair)
    roots = singular_values(weight, pair)[:5].sqrt()
    torch.testing.assert_close(factors.a.flatten(1).norm(dim=1), roots, rtol=1e-12, atol=0)
    torch.testing.assert_close(factors.b.flatten(1).norm(dim=1), roots, rtol=1e-12, atol=0)


def test_shapes_of_an_outer_product_are_the_truncated_svd() -> None:
    weight = seeded(12, 10)
    values = torch.linalg.svdvals(weight)
    fit = fit_kron(weight, 3, shapes=((12, 1), (1, 10)))
    assert fit.error == pytest.approx(float(values[3:].norm() / values.norm()), rel=1e-12)
    assert fit_kron(weight, 1, shapes=((1, 1), (12, 10))).error <= 1e-14


@settings(derandomize=True, deadline=None, max_examples=20)
@given(error=st.floats(0.01, 0.95), seed=st.integers(0, 5), dtype=st.sampled_from(DTYPES[:3]))
def test_error_is_kept_with_the_fewest_terms(error: float, seed: int, dtype: torch.dtype) -> None:
    pair = ((4, 6), (5, 3))
    weight = seeded(20, 18, 2, seed=seed, dtype=dtype)
    fit = fit_kron(weight, error=error, shapes=pair)
    assert fit.converged
    assert fit.error <= error
    if fit.factors.rank > 1 and dtype != torch.bfloat16:
        assert discarded(weight, pair, fit.factors.rank - 1) > error


@settings(derandomize=True, deadline=None, max_examples=20)
@given(share=st.floats(0.02, 1.0), seed=st.integers(0, 3))
def test_a_share_is_an_upper_bound(share: float, seed: int) -> None:
    weight = seeded(24, 20, seed=seed, dtype=torch.float32)
    pair = ((6, 4), (4, 5))
    factors = kron(weight, share, shapes=pair)
    assert factors.n_params <= share * 480 or factors.rank == 1
    assert factors.rank in (24 - 4, math.floor(share * 480 / 44), 1)
    searched = fit_kron(weight, share, random_state=seed)
    assert searched.factors.n_params <= share * 480 or searched.factors.rank == 1
    # The cheapest terms are among those tried, here those of 6 x 4 and 4 x 5.
    assert searched.error <= fit_kron(weight, share, shapes=pair).error * (1 + 1e-6)


def test_error_out_of_reach_of_the_dtype_warns() -> None:
    weight = seeded(12, 12, dtype=torch.bfloat16)
    with pytest.warns(TensorlrfWarning, match="out of reach with every pair") as seen:
        fit = fit_kron(weight, error=5e-4)
    assert len(seen) == 1
    assert not fit.converged


# ---- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shapes",
    [
        ((3, 4), (4, 4)),
        ((3, 4),),
        (3, 4),
        "ab",
        ((0, 4), (4, 3)),
        ((3.5, 4), (4, 3)),
        ((math.inf, 4), (4, 3)),
        7,
    ],
)
def test_shapes_that_do_not_multiply_to_the_weights(shapes: object) -> None:
    with pytest.raises(ShapeError, match=r"m1 m2 = 12 and n1 n2 = 12.*\(\(.*more"):
        kron(seeded(12, 12), 2, shapes=shapes)


@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_prime_sides_have_no_proper_pair(kernel: tuple[int, ...]) -> None:
    weight = seeded(7, 11, *kernel)
    with pytest.raises(ShapeError, match=r"7 x 11 .*use svd.*pad the layer, to 8 x 16"):
        kron(weight, 1)
    # What is asked for by name is given.
    assert kron(weight, 1, shapes=((7, 1), (1, 11))).shape == (7, 11, *kernel)
    with pytest.raises(ShapeError, match=r"such as .*\(\(7, 1\), \(1, 11\)\)"):
        kron(weight, 1, shapes=((2, 1), (3, 11)))


def test_ranks_and_options_that_are_refused() -> None:
    weight = seeded(6, 8)
    with pytest.raises(RankError, match=r"rank=5 is above 4, the terms that .*use at most 4"):
        kron(weight, 5, shapes=((2, 2), (3, 4)))
    with pytest.raises(RankError, match="rank=99 is above 6, the most"):
        kron(weight, 99)
    for rank in (0, "many"):
        with pytest.raises(RankError, match="rank="):
            kron(weight, rank)
    with pytest.raises(ArgumentError, match="needs rank="):
        kron(weight, error=0.1, solver="randomized")
    with pytest.raises(ArgumentError, match=r"n_power_iter=1\.5"):
        kron(weight, 2, n_power_iter=1.5)  # type: ignore[arg-type]
