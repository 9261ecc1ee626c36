"""CP from fibres drawn by leverage."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition.cp._cp import fit_cp
from tensorlrf.decomposition.cp._entries import EntrySample, draw_by_square, draw_index
from tensorlrf.decomposition.cp._leverage import (
    LeverageSampler,
    Rows,
    draw_rows,
    fibres,
    heaviest_rows,
    khatri_rao_rows,
    leverage_scores,
    merge_equal,
)
from tensorlrf.decomposition.cp._state import make_state
from tensorlrf.errors import ArgumentError
from tensorlrf.factors import CPFactors
from tensorlrf.factors.algebra import khatri_rao
from tests.decomposition.cp.test_cp_device import Watch
from tests.draws import generator


def factor(n: int, rank: int, seed: int, *, coherent: bool = False) -> Tensor:
    """(n, r): Gaussian, or nearly a few rows of the identity, which have all the leverage."""
    u = torch.randn(n, rank, generator=generator(seed))
    if not coherent:
        return u
    u = 0.05 * u
    for j in range(rank):
        u[3 * j % n, j] += 1 + 5 * torch.rand((), generator=generator(17 * seed + j))
    return u


def noisy(shape: tuple[int, ...], rank: int, noise: float, *, coherent: bool = False) -> Tensor:
    parts = tuple(factor(n, rank, 3 + k, coherent=coherent) for k, n in enumerate(shape))
    model = CPFactors(torch.ones(rank), parts).to_dense()
    white = torch.randn(shape, generator=generator(11))
    return model + noise * white * model.norm() / white.norm()


CASES = [
    ((40, 40, 40), 5, 0.1),
    ((40, 40, 40), 5, 1.0),
    ((48, 48, 3, 3), 8, 0.1),
    ((60, 8, 9), 6, 0.2),
    ((12, 13, 14), 8, 0.1),
]


@pytest.mark.parametrize("coherent", [False, True])
@pytest.mark.parametrize(("shape", "rank", "noise"), CASES)
def test_final_error_is_that_of_converged_als(
    shape: tuple[int, ...], rank: int, noise: float, coherent: bool
) -> None:
    tensor = noisy(shape, rank, noise, coherent=coherent)
    best = fit_cp(
        tensor, rank, init="svd", solver="als", n_iter_max=200, n_restarts=3, random_state=99
    ).error
    for seed in range(2):
        fit = fit_cp(tensor, rank, solver="leverage", random_state=seed)
        assert fit.error <= 1.01 * best
        assert fit.error == pytest.approx(fit.factors.rel_error(tensor), rel=1e-4)


def test_an_exact_tensor_is_recovered() -> None:
    tensor = noisy((20, 21, 22), 4, 0.0).double()
    fit = fit_cp(tensor, 4, solver="leverage", random_state=0)
    assert fit.factors.rel_error(tensor) < 1e-6


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    rank=st.integers(1, 6),
    seed=st.integers(0, 50),
)
def test_leverage_is_the_diagonal_of_the_projection(sizes: list[int], rank: int, seed: int) -> None:
    for k, n in enumerate(sizes):
        u = torch.randn(n, rank, generator=generator(seed + k), dtype=torch.float64)
        found = leverage_scores(u[:, None, :])[0]
        expected = (u @ torch.linalg.pinv(u)).diagonal()
        # The ridge of r 1e-12 tells on the smallest singular value that such matrices have.
        assert torch.allclose(found * min(n, rank), expected, atol=1e-3, rtol=0)
        assert float(found.sum()) == pytest.approx(1)


def test_dependent_columns_and_zero_rows_have_leverage_too() -> None:
    u = torch.randn(9, 2, generator=generator(), dtype=torch.float64)
    u[4] = 0
    twice = torch.cat([u, u], dim=1)
    one, two = leverage_scores(u[:, None, :])[0], leverage_scores(twice[:, None, :])[0]
    torch.testing.assert_close(one, two, atol=1e-9, rtol=0)
    assert float(one[4]) == 0


def test_the_product_bounds_the_leverage_of_the_khatri_rao_rows() -> None:
    """(Larsen & Kolda 2022), with the ranks that make probabilities scores again."""
    parts = [factor(n, 3, k).double() for k, n in enumerate((6, 7, 5))]
    product = khatri_rao(tuple(parts))
    exact = (product @ torch.linalg.pinv(product)).diagonal()
    scores = [leverage_scores(u[:, None, :]) for u in parts]
    bound = math.prod([3.0] * 3) * torch.einsum("a,b,c->abc", *(p[0] for p in scores)).flatten()
    assert bool((exact <= bound * (1 + 1e-9)).all())


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    count=st.integers(1, 40),
    seed=st.integers(0, 50),
)
def test_the_heaviest_rows_are_found(sizes: list[int], count: int, seed: int) -> None:
    scores = []
    for k, n in enumerate(sizes):
        p = torch.rand(2, n, generator=generator(seed + k), dtype=torch.float64) ** 4
        scores.append(p / p.sum(1, keepdim=True))
    rows, chance = heaviest_rows(scores, count)
    for s in range(2):
        whole = scores[0][s]
        for p in scores[1:]:
            whole = (whole[:, None] * p[s]).flatten()
        expected = whole.sort(descending=True).values[:count]
        torch.testing.assert_close(chance[s], expected)
        torch.testing.assert_close(whole[rows[s]], chance[s])


def test_equal_rows_are_merged_and_no_weight_is_lost() -> None:
    rows = torch.randint(9, (3, 40), generator=generator())
    weights = torch.rand(3, 40, generator=generator(1), dtype=torch.float64)
    merged, total = merge_equal(rows, weights)
    for s in range(3):
        used = merged[s][total[s] > 0]
        assert used.unique().numel() == used.numel()
        for row in used:
            expected = weights[s][rows[s] == row].sum()
            torch.testing.assert_close(
                total[s][(merged[s] == row) & (total[s] > 0)], expected[None]
            )


@pytest.mark.parametrize("coherent", [False, True])
def test_sums_over_rows_are_right_on_average(coherent: bool) -> None:
    """The mean of the sampled Grams is the Gram, heavy rows or not."""
    parts = [factor(n, 3, k, coherent=coherent)[:, None, :].double() for k, n in enumerate((8, 9))]
    exact = khatri_rao(tuple(u[:, 0] for u in parts))
    exact = exact.T @ exact
    scores = [leverage_scores(u) for u in parts]
    rng = generator()
    grams = []
    for _ in range(300):
        rows = draw_rows(scores, 12, rng)
        z = khatri_rao_rows(parts, rows)[0]
        grams.append((z.T * rows.weights[0]) @ z)
    stack = torch.stack(grams)
    error = (stack.mean(0) - exact).abs()
    # Five standard deviations of the mean; rows that are surely taken leave no deviation at all.
    assert bool((error <= 5 * stack.std(0) / 300**0.5 + 1e-9 * exact.abs().max()).all())


def test_heavy_rows_are_surely_taken_with_weight_one() -> None:
    scores = [torch.tensor([[0.9, 0.05, 0.05]]).double(), torch.tensor([[0.7, 0.2, 0.1]]).double()]
    light = 0
    for seed in range(20):
        rows = draw_rows(scores, 6, generator(seed))
        i, j = rows.indices
        taken = {
            (int(a), int(b)): float(w)
            for a, b, w in zip(i[0], j[0], rows.weights[0], strict=True)
            if w > 0
        }
        heavy = {(0, 0)} | {(0, 1)}  # .63 and .18 are above 1/6
        assert all(taken[row] == 1 for row in heavy)
        light += len(taken) - len(heavy)
        assert rows.weights.shape == (1, 6)
    assert light > 20


def test_rows_cover_the_whole_where_there_are_enough() -> None:
    """All rows heavy, or as many as are asked for: the sums are exact."""
    scores = [torch.full((1, 3), 1 / 3).double(), torch.full((1, 2), 1 / 2).double()]
    rows = draw_rows(scores, 20, generator())
    i, j = rows.indices
    taken = [(int(a), int(b)) for a, b in zip(i[0], j[0], strict=True)]
    assert sorted(taken) == list(itertools.product(range(3), range(2)))
    assert bool((rows.weights == 1).all())


def test_fibres_are_columns_of_the_unfolding() -> None:
    tensor = torch.randn(4, 5, 6, 3, generator=generator())
    indices = tuple(torch.randint(n, (2, 7), generator=generator(n)) for n in (4, 6, 3))
    found = fibres(tensor, 1, Rows(indices, torch.ones(2, 7)))
    for s in range(2):
        for t in range(7):
            a, c, d = (int(i[s, t]) for i in indices)
            assert torch.equal(found[s, t], tensor[a, :, c, d])


def test_a_sweep_over_all_rows_is_exact_least_squares() -> None:
    rng = generator()
    true = [torch.randn(n, 1, 2, generator=rng, dtype=torch.float64) for n in (6, 4, 5)]
    weights = torch.ones(1, 2, dtype=torch.float64)
    tensor = CPFactors(weights[0], tuple(f[:, 0] for f in true)).to_dense()
    wrong = torch.randn(6, 1, 2, generator=rng, dtype=torch.float64)
    state = make_state([wrong, *true[1:]], weights)
    sampler = LeverageSampler.make(tensor, float(tensor.norm()), rng)
    after = sampler.sweep(state, 400, 1e-12, frozenset({1, 2}), rng)
    expected = true[0] / true[0].norm(dim=0)
    overlap = (after.factors[0] * expected).sum(0).abs()
    torch.testing.assert_close(overlap, torch.ones_like(overlap))
    assert sampler.errors(after)[0] < 1e-9


def test_sweeps_do_not_wait_for_the_device() -> None:
    rng = generator()
    tensor = torch.randn(30, 31, 32, generator=rng)
    sampler = LeverageSampler.make(tensor, float(tensor.norm()), rng)
    factors = [torch.randn(n, 2, 3, generator=rng) for n in tensor.shape]
    state = make_state(factors, torch.zeros(2, 3))
    with Watch() as watch:
        sampler.sweep(state, 40, 1e-6, frozenset(), rng)
    # The likeliest rows are sought among the products of as many rows and a mode.
    assert watch.largest <= 2 * max(40 * 32, 4 * 40 * 3)


def test_entries_of_the_whole_tensor_give_the_residual_itself() -> None:
    tensor = torch.randn(5, 6, 7, generator=generator(), dtype=torch.float64)
    factors = [torch.randn(n, 1, 2, generator=generator(n), dtype=torch.float64) for n in (5, 6, 7)]
    state = make_state(factors, torch.ones(1, 2))
    model = CPFactors(torch.ones(2).double(), tuple(f[:, 0] for f in factors)).to_dense()
    sample = EntrySample.draw(tensor, 1000, generator())
    found = float(sample.square_residuals(state)[0])
    assert found == pytest.approx(float((tensor - model).square().sum()))


def test_sampled_entries_estimate_the_residual_without_bias() -> None:
    tensor = noisy((15, 16, 17), 3, 0.5, coherent=True)
    state = make_state([torch.zeros(n, 1, 1) for n in tensor.shape], torch.zeros(1, 1))
    found = torch.stack(
        [EntrySample.draw(tensor, 200, generator(s)).square_residuals(state)[0] for s in range(300)]
    )
    exact = float(tensor.double().square().sum())
    assert abs(float(found.mean()) - exact) <= 5 * float(found.std()) / 300**0.5


def test_draws_follow_the_squares_and_leave_zeros_alone() -> None:
    flat = torch.zeros(200)
    flat[3], flat[70], flat[199] = 1.0, -2.0, 3.0
    drawn = draw_by_square(flat, 14000, generator())
    counts = torch.bincount(drawn, minlength=200)
    assert int(counts[[3, 70, 199]].sum()) == 14000
    expected = 1000 * torch.tensor([1.0, 4.0, 9.0])
    assert bool(((counts[[3, 70, 199]] - expected).abs() < 5 * expected.sqrt()).all())
    assert draw_index(torch.tensor([0.0, 1.0, 0.0]), 100, generator()).unique().tolist() == [1]


def test_a_matrix_has_the_error_of_its_svd() -> None:
    matrix = torch.randn(20, 15, generator=generator())
    values = torch.linalg.svdvals(matrix.double())
    found = fit_cp(matrix, 4, solver="leverage", random_state=0).error
    assert found <= 1.0001 * float(values[4:].norm() / values.norm())


def test_n_samples_fixed_modes_and_the_callback() -> None:
    tensor = noisy((14, 15, 16), 3, 0.2)
    few = fit_cp(tensor, 3, solver="leverage", n_samples=6, random_state=0)
    many = fit_cp(tensor, 3, solver="leverage", n_samples=200, random_state=0)
    assert few.errors[0] != many.errors[0]
    seen: list[float] = []
    stopped = fit_cp(
        tensor, 3, solver="leverage", random_state=0, callback=lambda _, e: seen.append(e) or True
    )
    assert len(seen) == 1
    assert not stopped.converged
    given = CPFactors(
        torch.ones(3), tuple(torch.randn(n, 3, generator=generator(n)) for n in (14, 15, 16))
    )
    kept = fit_cp(tensor, 3, solver="leverage", init=given, fixed_modes=(1,), random_state=0)
    assert torch.equal(kept.factors.factors[1], given.factors[1])
    with pytest.raises(ArgumentError, match="'cprand' or 'leverage'"):
        fit_cp(tensor, 3, n_samples=10)
