"""Tensor rings: exact ones, monotone sweeps, least-squares steps, outputs, and refusals."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorlrf.decomposition.trains._tr import fit_tr, tr
from tensorlrf.decomposition.trains._tr_als import (
    RingProblem,
    balanced,
    contracted,
    half_sweep,
    self_product,
)
from tensorlrf.decomposition.trains._tr_outputs import OutputRingProblem
from tensorlrf.decomposition.trains._tr_start import ring_cut, ring_ranks, ring_svd
from tensorlrf.decomposition.trains._tt import fit_tt
from tensorlrf.errors import ArgumentError, RankError, ShapeError, TensorlrfWarning
from tensorlrf.factors import TRFactors
from tensorlrf.factors.algebra import chain_product
from tests.draws import seeded
from tests.metrics import in_moments, moments_within
from tests.public import public

EPS = torch.finfo(torch.float64).eps


def ring(shape: tuple[int, ...], ranks: tuple[int, ...], seed: int = 0) -> TRFactors:
    bonds = (*ranks, ranks[0])
    pairs = zip(shape, pairwise(bonds), strict=True)
    return TRFactors(tuple(seeded(r, n, s, seed=seed + k) for k, (n, (r, s)) in enumerate(pairs)))


def falls(errors: tuple[float, ...]) -> bool:
    return all(b <= a * (1 + 1e-12) for a, b in pairwise(errors))


@pytest.mark.parametrize(
    ("shape", "ranks", "dtype"),
    [
        ((7, 6, 8), (2, 3, 2), torch.float64),
        ((6, 5, 4, 7), (2, 2, 3, 2), torch.float64),
        ((9, 8), (2, 2), torch.float64),
        ((7, 6, 8), (2, 2, 2), torch.float32),
        ((7, 6, 8), (2, 2, 2), torch.bfloat16),
        ((7, 6, 8), (2, 2, 2), torch.float16),
    ],
)
def test_rings_are_found_again(
    shape: tuple[int, ...], ranks: tuple[int, ...], dtype: torch.dtype
) -> None:
    tensor = ring(shape, ranks).to_dense().to(dtype)
    copy = tensor.clone()
    fits = [
        fit_tr(tensor, ranks, n_iter_max=200, tol=1e-9, init=init, random_state=seed)
        for init, seed in (("svd", 0), ("random", 1), ("random", 2))
    ]
    best = min(fits, key=lambda fit: fit.error)
    # The cores' rounding, the input's, and where the sweeps stop.
    assert best.error <= 4 * len(shape) * torch.finfo(dtype).eps + 1e-6
    assert torch.equal(tensor, copy)
    for fit in fits:
        assert falls(fit.errors[:-1])
        assert fit.factors.dtype == dtype
        assert fit.factors.rank == (*ranks, ranks[0])


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=4).map(tuple),
    data=st.data(),
    init=st.sampled_from(["svd", "random"]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16]),
)
def test_sweeps_never_raise_the_error(
    shape: tuple[int, ...], data: st.DataObject, init: str, dtype: torch.dtype
) -> None:
    most = ring_ranks(99, shape, math.prod(shape))[0]
    ranks = tuple(data.draw(st.integers(1, min(4, most))) for _ in shape)
    tensor = seeded(*shape, dtype=dtype)
    fit = fit_tr(tensor, ranks, init=init, n_iter_max=15, random_state=3)
    assert falls(fit.errors[:-1])
    assert all(bool(c.isfinite().all()) for c in fit.factors)
    assert fit.factors.shape == shape
    wide = fit.factors.to(torch.float64)
    rounding = 4 * len(shape) * torch.finfo(dtype).eps
    assert fit.error == pytest.approx(wide.rel_error(tensor.double()), abs=rounding)
    # Cores of one norm, each entry rounded: the error moves by the product of the norms.
    spread = math.prod(float(c.norm()) for c in wide) / float(tensor.double().norm())
    assert abs(fit.error - fit.errors[-2]) <= rounding * max(1.0, spread)


def test_a_half_sweep_solves_the_least_squares_of_the_subchain() -> None:
    """Against the subchain formed in full and LAPACK's least squares."""
    tensor = seeded(4, 3, 5, 6)
    cores = list(ring((4, 3, 5, 6), (2, 3, 2, 3), seed=4).cores)
    other = chain_product(cores[2:])
    cross = contracted(tensor.reshape(12, 30), other)
    moved, value = half_sweep(cores[:2], cross, self_product(other), 1e-14)
    # The second core, with the first as it was left: bonds (3, 2), the others in one.
    rest = chain_product([*cores[2:], moved[0]])  # (r_2, n_2 n_3 n_0, r_1)
    subchain = rest.permute(1, 2, 0).reshape(-1, 6)
    unfolded = tensor.permute(2, 3, 0, 1).reshape(-1, 3)
    solution = torch.linalg.lstsq(subchain, unfolded).solution  # (r_1 r_2, n_1)
    torch.testing.assert_close(moved[1], solution.reshape(3, 2, 3).transpose(1, 2))
    loss = float((subchain @ solution - unfolded).square().sum())
    assert float(tensor.square().sum()) + value == pytest.approx(loss, rel=1e-10)


def test_self_products_multiply_to_the_gram_of_the_subchain() -> None:
    cores = ring((4, 3, 5), (2, 3, 2)).cores
    product = self_product(cores[0]) @ self_product(cores[1]) @ self_product(cores[2])
    whole = self_product(chain_product(cores))
    torch.testing.assert_close(product, whole)


def test_norms_are_balanced_and_the_ring_stays() -> None:
    cores = ring((4, 3, 5), (2, 3, 2)).cores
    far = [cores[0] * 1e6, cores[1], cores[2] * 1e-9]
    even = balanced(far)
    norms = [float(c.norm()) for c in even]
    assert max(norms) <= min(norms) * (1 + 1e-12)
    torch.testing.assert_close(TRFactors(tuple(even)).to_dense(), TRFactors(tuple(far)).to_dense())
    fitted = tr(seeded(6, 5, 4), 2, n_iter_max=5, random_state=0)
    norms = [float(c.norm()) for c in fitted]
    assert max(norms) <= min(norms) * (1 + 1e-12)


def test_successive_svds_are_exact_where_the_bonds_suffice() -> None:
    tensor = seeded(4, 3, 5)
    draws = torch.Generator().manual_seed(0)
    cores = ring_svd(tensor, (2, 2, 6), draws)
    assert TRFactors(tuple(cores)).rel_error(tensor) <= 1e-13
    # With one bond of rank one the ring is a train.
    cores = ring_svd(tensor, (1, 4, 5), draws)
    assert TRFactors(tuple(cores)).rel_error(tensor) <= 1e-13
    start = RingProblem(tensor).rel_error(ring_svd(tensor, (1, 2, 3), draws))
    train = fit_tt(tensor, (2, 3))
    assert fit_tr(tensor, (1, 2, 3)).error <= start * (1 + 1e-12)
    assert start == pytest.approx(train.error, rel=1e-10)


@pytest.mark.parametrize("mode", [0, 1, 2, -1])
def test_a_ring_begins_at_any_core(mode: int) -> None:
    """As one of the turned tensor does at its first, and is exact where the bonds suffice."""
    tensor, ranks = seeded(4, 3, 5), (2, 6, 2)
    draws = torch.Generator().manual_seed(0)
    k = mode % 3
    cores = ring_cut(tensor, ranks, draws, k)
    assert TRFactors(tuple(cores)).rank == (*ranks, ranks[0])
    turned = tensor.movedim(tuple(range(3)), tuple((j - k) % 3 for j in range(3)))
    draws = torch.Generator().manual_seed(0)
    other = ring_svd(turned, tuple(ranks[(j + k) % 3] for j in range(3)), draws)
    for j, core in enumerate(other):
        torch.testing.assert_close(cores[(j + k) % 3], core)
    fit = fit_tr(tensor, ranks, mode=mode, n_iter_max=4, random_state=0)
    assert fit.errors[0] == pytest.approx(TRFactors(tuple(cores)).rel_error(tensor), rel=1e-6)
    assert falls(fit.errors[:-1])


def test_the_cut_that_shares_the_rank_out_evenly_starts_best() -> None:
    """Bonds of two beside core 1, whose SVD is then exact."""
    tensor = ring((3, 12, 3), (6, 2, 2)).to_dense()
    starts = [fit_tr(tensor, (6, 2, 2), mode=k, n_iter_max=1, random_state=0) for k in range(3)]
    assert starts[1].errors[0] <= 1e-12
    assert min(starts[0].errors[0], starts[2].errors[0]) > 1e-3


def test_a_bond_above_those_of_trains_is_fitted() -> None:
    """Between short modes beside a long one: with bonds of two about core 1 no ring is better than
    four singular values of it, and one with a bond of 2 x 3 is as good; a train has three there."""
    tensor = seeded(3, 10, 3)
    values = torch.linalg.svdvals(tensor.transpose(0, 1).reshape(10, 9))
    least = float(values[4:].norm() / values.norm())
    fits = [
        fit_tr(tensor, (r, 2, 2), n_iter_max=600, tol=1e-9, random_state=0, init=init)
        for r in (3, 6)
        for init in ("svd", "random")
    ]
    assert all(falls(fit.errors[:-1]) for fit in fits)
    assert min(fit.error for fit in fits[:2]) > least * 1.001
    for fit in fits[2:]:
        assert fit.factors.rank == (6, 2, 2, 6)
        assert least * (1 - 1e-9) <= fit.error <= least * 1.0005
    cut = fit_tr(tensor, (6, 2, 2), mode=1, n_iter_max=1)
    assert cut.errors[0] == pytest.approx(least, rel=1e-9)


@pytest.mark.parametrize(("rank", "figure"), [(2, 0.0453), (3, 0.0366), (4, 0.0334)])
def test_public_data(rank: int, figure: float) -> None:
    """No worse than alternating least squares as published reach in twenty sweeps."""
    tensor = public("kinetic")
    fit = fit_tr(tensor, rank, n_iter_max=50, random_state=0)
    assert fit.factors.rel_error(tensor) <= figure
    assert falls(fit.errors[:-1])


def test_digits_of_a_matrix() -> None:
    weight = seeded(24, 30)
    sizes = ((6, 4), (5, 6))
    factors = tr(weight, 3, sizes=sizes, n_iter_max=20, random_state=0)
    assert factors.shape == (24, 30)
    assert factors.sizes == (6, 4, 5, 6)
    plain = tr(weight.reshape(6, 4, 5, 6), 3, n_iter_max=20, random_state=0)
    torch.testing.assert_close(factors.to_dense(), plain.to_dense().reshape(24, 30))


def test_error_is_kept_by_the_smallest_uniform_rank_tried() -> None:
    tensor = ring((8, 9, 10, 7), (3, 3, 3, 3)).to_dense()
    for error in (0.5, 0.1):
        fit = fit_tr(tensor, error=error, random_state=0)
        r = fit.factors.rank[0]
        assert fit.converged
        assert fit.error <= error
        assert fit.factors.rank == (r,) * 5
        if r > 1:
            assert fit_tr(tensor, r - 1, random_state=0).error > error
    with pytest.warns(TensorlrfWarning, match="error=0.001 is out of reach"):
        out = fit_tr(seeded(6, 5, 4), error=1e-3, random_state=0)
    assert not out.converged
    assert out.factors.n_params <= 120
    assert "within 120 parameters" in out.reason


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=4).map(tuple),
    share=st.floats(0.01, 1.0),
)
def test_a_share_bounds_the_parameters(shape: tuple[int, ...], share: float) -> None:
    dense = math.prod(shape)
    r = ring_ranks(share, shape, dense)[0]
    assert r == 1 or sum(shape) * r * r <= share * dense
    most = ring_ranks(dense, shape, dense)[0]
    assert r == most or sum(shape) * (r + 1) ** 2 > share * dense


def test_in_the_metric_of_the_identity_the_loss_is_the_plain_one() -> None:
    weight = seeded(12, 20)
    cores = ring((4, 3, 5, 4), (2, 2, 3, 2)).cores
    metric = OutputRingProblem(in_moments(weight, torch.eye(20)), 2)
    problem = RingProblem(weight.reshape(4, 3, 5, 4))
    assert metric.rel_error(cores) == pytest.approx(problem.rel_error(cores), rel=1e-12)
    # Cores of the rows are solved for alike; conjugate gradients come near for those behind.
    one, other = metric.sweep(cores, 1e-10)[0][:2], problem.sweep(cores, 1e-10)[0][:2]
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a / a.norm(), b / b.norm(), rtol=1e-8, atol=1e-10)
    sizes = ((4, 3), (5, 4))
    plain = fit_tr(weight, 2, sizes=sizes, random_state=0)
    fit = fit_tr(weight, 2, sizes=sizes, gram=torch.eye(20), random_state=0)
    assert fit.errors[0] == pytest.approx(plain.error, rel=1e-12)
    assert fit.error <= plain.error * (1 + 1e-12)


def test_an_exact_ring_stays_exact_in_the_metric() -> None:
    factors = ring((4, 3, 5, 4), (2, 2, 2, 2))
    weight = factors.to_dense().reshape(12, 20)
    metric = OutputRingProblem(in_moments(weight, moments_within(20, dead=3)), 2)
    assert metric.rel_error(factors.cores) <= 1e-14
    assert metric.sweep(factors.cores, 1e-10)[1] <= 1e-13


def test_one_sweep_and_clipped_ranks() -> None:
    fit = fit_tr(seeded(5, 6, 7), 2, n_iter_max=1)
    assert len(fit.errors) == 3
    assert not fit.converged
    assert tr(seeded(6, 5, 4), 99, n_iter_max=1).rank == (6, 6, 6, 6)
    assert tr(seeded(6, 5, 4), (2, 3, 2), n_iter_max=1).rank == (2, 3, 2, 2)


@pytest.mark.parametrize(
    ("rank", "text"),
    [
        ((2, 2, 2, 3), "one rank"),
        ((2, 2), "3, or 4"),
        ((9, 2, 2), "asks for 9 at bond 0; use at most 8"),
        ((0, 2, 2), "at least 1"),
        (True, "one int"),
        (1.5, "share"),
    ],
)
def test_ranks_that_are_refused(rank: Any, text: str) -> None:
    with pytest.raises(RankError, match=text):
        tr(seeded(6, 5, 4), rank)


def test_refusals() -> None:
    tensor: Any = seeded(6, 5, 4)
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"gram": torch.eye(4)}, ShapeError, "is for a matrix"),
        ({"mean": torch.zeros(4)}, ArgumentError, "goes with gram"),
        ({"sizes": ((6,), (5,), (2, 3))}, ShapeError, r"multiply to \(6, 5, 6\)"),
        ({"sizes": ((6,), (5,))}, ShapeError, "multiply"),
        ({"sizes": ((6,), (5,), (2, 2.0))}, ShapeError, "ints"),
        ({"mode": 3}, ArgumentError, "mode=3 is no core of a ring of 3; use one from -3 to 2"),
        ({"mode": True}, ArgumentError, "mode=True must be an int"),
        ({"mode": 1, "init": "random"}, ArgumentError, "mode=1 goes with init='svd'"),
        ({"sizes": 5}, ArgumentError, "sizes=5 must be a sequence, such as"),
        ({"sizes": (6, 5, 4)}, ArgumentError, r"sizes\[0\]=6 must be a sequence, such as"),
    ]
    for options, error, text in cases:
        with pytest.raises(error, match=text):
            tr(tensor, 2, **options)
