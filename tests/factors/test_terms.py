"""Leading terms of factors, and the order in which these say most."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tensorlrf
from tensorlrf.errors import ArgumentError, RankError, ShapeError, UnsupportedError
from tensorlrf.factors import CPFactors, Factors, Grouped, KroneckerSum, LowRank, TuckerFactors
from tests.draws import seeded
from tests.ops.samples import random_factors, random_grouped

WITH_TERMS = ("lowrank", "cp", "tucker", "tucker2", "kron")
SHAPES = ((8, 6), (6, 4, 3), (6, 4, 3, 2))


def largest(rank: int | tuple[int, ...]) -> int:
    return max(rank) if isinstance(rank, tuple) else rank


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_order_changes_no_whole_and_leading_terms_are_views_that_add_up(
    data: st.DataObject,
) -> None:
    format = data.draw(st.sampled_from(WITH_TERMS))
    shape = data.draw(st.sampled_from(SHAPES if format != "kron" else (SHAPES[0], SHAPES[2])))
    groups = data.draw(st.sampled_from((1, 2))) if len(shape) > 2 else 1
    rank = data.draw(st.integers(1, 9))
    dtype = data.draw(st.sampled_from((torch.float64, torch.float32)))
    f = random_grouped(format, shape, groups, data.draw(st.integers(0, 99)), dtype, rank)
    ordered = f.by_energy()
    assert (ordered.rank, ordered.dtype) == (f.rank, dtype)
    dense = f.to_dense()
    eps = 100 * torch.finfo(dtype).eps * float(dense.abs().max() + 1) * largest(f.rank)
    torch.testing.assert_close(ordered.to_dense(), dense, rtol=0, atol=eps)
    part = ordered.leading(data.draw(st.integers(1, largest(f.rank))))
    part.check()
    memory = {name: t.untyped_storage().data_ptr() for name, t in ordered.tensors().items()}
    assert memory == {name: t.untyped_storage().data_ptr() for name, t in part.tensors().items()}
    torch.testing.assert_close(ordered.leading(largest(f.rank)).to_dense(), ordered.to_dense())


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 12), st.integers(0, 99))
def test_leading_terms_of_two_matrices_are_the_truncated_svd(
    m: int, n: int, rank: int, seed: int
) -> None:
    f = LowRank(seeded(m, rank, seed=seed), seeded(rank, n, seed=seed + 1))
    dense, ordered = f.to_dense(), f.by_energy()
    values = torch.linalg.svdvals(dense)
    for r in range(1, rank + 1):
        missing = float(torch.dist(ordered.leading(r).to_dense(), dense))
        assert math.isclose(missing, float(values[r:].norm()), rel_tol=1e-8, abs_tol=1e-9)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 9), st.integers(1, 20))
def test_in_a_metric_they_lose_as_little_of_the_outputs_as_any(
    m: int, n: int, rank: int, samples: int
) -> None:
    """Also where the inputs span less than the columns."""
    f = LowRank(seeded(m, rank), seeded(rank, n, seed=1))
    x = seeded(n, samples, seed=2)
    ordered = f.by_energy(x @ x.T / samples)
    torch.testing.assert_close(ordered.to_dense(), f.to_dense(), rtol=1e-9, atol=1e-9)
    outputs = f.to_dense() @ x
    values = torch.linalg.svdvals(outputs)
    for r in range(1, rank + 1):
        missing = float(torch.dist(ordered.leading(r).to_dense() @ x, outputs))
        # Roots of eigenvalues of Grams: half of the digits.
        bound = 1e-6 * float(values[0])
        assert missing <= float(values[r:].norm()) + bound


def test_factors_by_svd_have_that_order_already_in_a_metric_too() -> None:
    w, x = seeded(10, 8), seeded(8, 40, seed=1) * torch.logspace(0, 2, 8)[:, None]
    G = x @ x.T / 40
    for gram in (None, G):
        whole = tensorlrf.svd(w, 6, gram=gram)
        for r in (1, 3, 5):
            short = tensorlrf.svd(w, r, gram=gram)
            torch.testing.assert_close(whole.leading(r).to_dense(), short.to_dense())


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1, 6), st.integers(0, 99))
def test_leading_kronecker_terms_are_the_nearest_of_their_number(s: int, seed: int) -> None:
    f = KroneckerSum(seeded(s, 3, 2, seed=seed), seeded(s, 2, 4, seed=seed + 1))
    ordered = f.by_energy()
    for r in range(1, s + 1):
        best = tensorlrf.kron(f.to_dense(), r, shapes=((3, 2), (2, 4)), solver="exact")
        missing = [
            float(torch.dist(g.to_dense(), f.to_dense())) for g in (ordered.leading(r), best)
        ]
        assert math.isclose(*missing, rel_tol=1e-7, abs_tol=1e-7)


def test_leading_tucker_ranks_are_the_truncated_hosvd() -> None:
    f = random_factors("tucker", (7, 6, 5), 4)
    part = f.by_energy().leading((2, 3, 2))
    best = tensorlrf.tucker(f.to_dense(), (2, 3, 2), solver="hosvd")
    torch.testing.assert_close(part.to_dense(), best.to_dense(), rtol=1e-7, atol=1e-7)


def test_cp_terms_come_by_their_norms() -> None:
    weights = torch.tensor([1.0, -5.0, 2.0])
    f = CPFactors(weights, (torch.eye(3), torch.eye(3)))
    assert f.by_energy().weights.tolist() == [-5.0, 2.0, 1.0]
    assert torch.count_nonzero(f.by_energy().leading(2).to_dense()) == 2


@pytest.mark.parametrize("format", ["tt", "tr", "monarch", "blast", "blr"])
def test_formats_without_an_order_say_so(format: str) -> None:
    f = random_factors(format, (6, 4))
    assert not f.has_terms
    for ask in (lambda: f.leading(1), f.by_energy):
        with pytest.raises(UnsupportedError, match="no sum of terms"):
            ask()


@pytest.mark.parametrize("rank", [0, 4, True, 1.0, (1, 1, 1)])
def test_ranks_out_of_range_are_refused(rank: object) -> None:
    matrix = LowRank(torch.ones(4, 3), torch.ones(3, 5))
    tucker = TuckerFactors(torch.ones(3, 3), (torch.ones(4, 3), torch.ones(5, 3)))
    for f in (matrix, tucker):
        with pytest.raises(RankError, match="rank="):
            f.leading(rank)


def test_a_metric_must_fit() -> None:
    f = LowRank(torch.ones(4, 3), torch.ones(3, 5))
    with pytest.raises(ShapeError, match=r"\(5, 5\)"):
        f.by_energy(torch.eye(4))
    with pytest.raises(ArgumentError, match="NaN"):
        f.by_energy(torch.full((5, 5), math.nan))
    others: list[Factors] = [random_factors(name, (6, 4)) for name in ("cp", "tucker2", "kron")]
    grouped = Grouped.stack([LowRank(torch.ones(4, 3), torch.ones(3, 5))] * 2)
    for other in (*others, grouped):
        with pytest.raises(ArgumentError, match="gram is given"):
            other.by_energy(torch.eye(4))


def test_gradients_reach_the_terms_that_were_taken() -> None:
    left: Tensor = torch.ones(4, 3, requires_grad=True)
    f = LowRank(left, torch.ones(3, 5))
    f.leading(2).to_dense().sum().backward()
    assert left.grad is not None
    assert left.grad.sum(0).tolist() == [20.0, 20.0, 0.0]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.sampled_from([("lowrank", (8, 6)), ("lowrank", (6, 4, 3)), ("cp", (8, 6))]),
    st.integers(1, 9),
    st.integers(1, 5),
    st.sampled_from((torch.float64, torch.float32, torch.bfloat16)),
)
def test_terms_behind_its_own_add_up_and_go_away_bit_for_bit(
    what: tuple[str, tuple[int, ...]], rank: int, k: int, dtype: torch.dtype
) -> None:
    f = random_factors(*what, rank=rank, dtype=dtype)
    columns = math.prod(f.shape[1:])
    left, right = seeded(f.shape[0], k).to(dtype), seeded(k, columns, seed=1).to(dtype)
    more = f.plus(left, right)
    assert (more.rank, more.dtype, more.shape) == (largest(f.rank) + k, dtype, f.shape)
    wide = f.to(torch.float64).to_dense() + (left.double() @ right.double()).reshape(f.shape)
    # Both in float64, of the very same numbers.
    torch.testing.assert_close(more.to(torch.float64).to_dense(), wide, rtol=1e-12, atol=1e-12)
    again = more.leading(f.rank).tensors()
    assert all(torch.equal(t, again[name]) for name, t in f.tensors().items())


@pytest.mark.parametrize("format", ["tucker", "kron", "tt", "tr", "monarch", "blast", "blr"])
def test_formats_that_take_no_such_terms_say_which_do(format: str) -> None:
    with pytest.raises(UnsupportedError, match=r"\(6, 4\).*LowRank, and CPFactors of a matrix"):
        random_factors(format, (6, 4)).plus(torch.ones(6, 1), torch.ones(1, 4))


def test_terms_that_do_not_fit_are_refused() -> None:
    cp = random_factors("cp", (4, 5), dtype=torch.float32)
    for f in (LowRank(torch.ones(4, 3), torch.ones(3, 5)), cp):
        with pytest.raises(ShapeError, match="4"):
            f.plus(torch.ones(5, 2), torch.ones(2, 4))
        with pytest.raises(ArgumentError, match=r"left is torch\.float64"):
            f.plus(torch.ones(4, 2).double(), torch.ones(2, 5).double())
    with pytest.raises(UnsupportedError, match=r"CPFactors\(6, 4, 3\)"):
        random_factors("cp", (6, 4, 3)).plus(torch.ones(6, 1), torch.ones(1, 12))


def test_gradients_reach_both_what_was_there_and_what_came() -> None:
    left, more = (torch.ones(4, n, requires_grad=True) for n in (2, 1))
    f = LowRank(left, torch.ones(2, 5)).plus(more, torch.ones(1, 5))
    f.to_dense().sum().backward()
    assert left.grad is not None
    assert more.grad is not None
    assert (left.grad == 5).all()
    assert (more.grad == 5).all()
