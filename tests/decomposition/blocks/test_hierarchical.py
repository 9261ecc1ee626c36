"""Trees of low-rank blocks: exactness, the best pruning, budgets, the metric, refusals."""

from __future__ import annotations

import math
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition.blocks._hierarchical import (
    fit_hierarchical,
    fit_hodlr,
    hierarchical,
    hodlr,
)
from tensorlrf.decomposition.blocks._hierarchical_tree import Forest, Node, adaptive_range
from tensorlrf.errors import (
    ArgumentError,
    RankError,
    UnsupportedError,
)
from tensorlrf.factors import BlockLowRank
from tests.draws import seeded
from tests.metrics import moments

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def planted(n: int, leaf: int, r: int, draws: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Rank r off the diagonal at every level, dense leaves."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws, dtype=dtype)

    if n <= leaf:
        return normal(n, n)
    up, down = -(-n // 2), n // 2
    upper = [planted(up, leaf, r, draws, dtype), normal(up, r) @ normal(r, down)]
    lower = [normal(down, r) @ normal(r, up), planted(down, leaf, r, draws, dtype)]
    return torch.cat([torch.cat(upper, dim=1), torch.cat(lower, dim=1)])


def smooth(m: int, n: int) -> Tensor:
    """1 / (distance + a little): blocks away from the diagonal are nearly of low rank."""
    x, y = torch.linspace(0, 1, m).double(), torch.linspace(0, 1, n).double()
    return 1 / ((x[:, None] - y).abs() + 0.02)


def residual(weight: Tensor, factors: BlockLowRank) -> float:
    wide = weight.double()
    return float((wide - factors.to(torch.float64).to_dense()).norm() / wide.norm())


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=["float32", "float64"]
)
def test_a_planted_matrix_of_4096_is_exact(dtype: torch.dtype, error: float) -> None:
    weight = planted(4096, 64, 8, torch.Generator().manual_seed(0), dtype)
    fit = fit_hodlr(weight, error=error, random_state=0)
    assert fit.error <= error
    assert residual(weight, fit.factors) <= error
    # Of each level 2 sides n 8 parameters, 6 levels, and the leaves.
    assert fit.factors.n_params == 6 * 2 * 4096 * 8 + 4096 * 64


@pytest.mark.parametrize("n", [96, 101, 130])
def test_odd_sizes_are_exact(n: int) -> None:
    weight = planted(n, 16, 2, torch.Generator().manual_seed(0), torch.float64)
    fit = fit_hodlr(weight, error=1e-12, leaf=16)
    assert fit.error <= 1e-14 * 10
    assert fit.factors.rank == 2
    assert fit_hodlr(weight, 2, leaf=16).error <= 1e-13


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    m=st.integers(1, 40),
    n=st.integers(1, 40),
    leaf=st.integers(1, 12),
    error=st.just(0.0) | st.floats(1e-6, 0.9),
    rule=st.sampled_from(["weak", "strong", "all"]),
    dtype=st.sampled_from(DTYPES),
)
def test_an_error_is_kept_after_the_cast(
    m: int, n: int, leaf: int, error: float, rule: str, dtype: torch.dtype
) -> None:
    weight = smooth(m, n).to(dtype)
    fit = fit_hierarchical(weight, error=error, leaf=leaf, admissible=rule)
    assert fit.converged
    assert fit.factors.shape == (m, n)
    assert fit.factors.dtype == dtype
    assert fit.error <= error
    assert residual(weight, fit.factors) <= error + 64 * torch.finfo(torch.float32).eps
    assert fit.factors.n_params <= m * n


def test_the_error_is_the_sum_over_the_leaves() -> None:
    weight = smooth(128, 128) + 0.5 * seeded(128, 128)
    fit = fit_hierarchical(weight, error=0.02, leaf=16, admissible="strong")
    lost = 0.0
    for block in fit.factors.blocks:
        rows, columns = (
            slice(block.row, block.row + block.rows),
            slice(block.column, block.column + block.columns),
        )
        if block.rank is not None:
            lost += float((torch.linalg.svdvals(weight[rows, columns])[block.rank :] ** 2).sum())
    assert fit.error == pytest.approx(math.sqrt(lost) / float(weight.norm()), rel=1e-9)
    assert 0.019 < fit.error <= 0.02


def prunings(node: Node) -> list[tuple[Node, ...]]:
    """All of them."""
    found = [(node,)]
    if node.children:
        splits = product(*(prunings(child) for child in node.children))
        found.extend(tuple(n for part in parts for n in part) for parts in splits)
    return found


@pytest.mark.parametrize("price", [1e-3, 0.1, 1.0, 10.0, 1e4])
def test_the_pruning_is_the_best_of_all(price: float) -> None:
    weight = smooth(20, 24) + 0.2 * seeded(20, 24)
    draws = torch.Generator().manual_seed(0)
    forest = Forest(weight, 5, lambda place, level, i, j: i != j, False, 0.0, None, draws)

    def cost(node: Node) -> float:
        low = [r * node.piece.each + price * node.tails[r] for r in range(len(node.tails))]
        return min([*low, node.piece.whole]) if node.piece.low_rank else node.piece.whole

    every = prunings(forest.root)
    assert len(every) > 16
    least = min(sum(cost(node) for node in pruning) for pruning in every)
    assert forest.root.priced(price).cost(price) == pytest.approx(least, rel=1e-12)


def test_strong_blocks_keep_away_from_the_diagonal_and_weak_ones_off_it() -> None:
    weight = smooth(128, 128)
    for rule, gap in (("weak", 0), ("strong", 1)):
        factors = hierarchical(weight, error=0.02, leaf=16, admissible=rule)
        assert any(b.rank is not None for b in factors.blocks)
        for b in factors.blocks:
            if b.rank is not None:
                assert abs(b.row - b.column) >= b.rows + gap


def test_a_function_says_what_may_be_low_rank() -> None:
    weight = smooth(96, 64)
    asked = []

    def right_half(row: int, rows: int, column: int, columns: int) -> bool:
        asked.append((row, rows, column, columns))
        return column >= 32

    factors = hierarchical(weight, error=0.05, leaf=16, admissible=right_half)
    assert (0, 96, 0, 64) in asked
    assert all(b.rank is None for b in factors.blocks if b.column < 32)
    assert any(b.rank is not None for b in factors.blocks)


def test_a_block_that_does_not_compress_is_cut() -> None:
    """One corner is noise, all else of rank one: a tree spends less than a matrix or a grid."""
    weight = seeded(64, 1) @ seeded(1, 64, seed=1)
    weight[:16, :16] = seeded(16, 16, seed=2)
    fit = fit_hierarchical(weight, error=1e-10, leaf=16, admissible="all")
    assert fit.error <= 1e-10
    corner = next(b for b in fit.factors.blocks if (b.row, b.column) == (0, 0))
    assert corner[2:] == (16, 16, None)
    # 3 quarters of 32 + 32, 3 of 16 + 16, and the corner.
    assert fit.factors.n_params == 3 * 64 + 3 * 32 + 256
    assert len(fit.factors.blocks) == 7


@pytest.mark.parametrize("rule", ["weak", "strong", "all"])
@pytest.mark.parametrize("share", [0.4, 0.6, "same"])
def test_a_share_is_an_upper_bound(rule: str, share: float | str) -> None:
    weight = smooth(96, 120) + 0.1 * seeded(96, 120)
    fit = fit_hierarchical(weight, share, leaf=12, admissible=rule)
    allowed = (1.0 if share == "same" else float(share)) * weight.numel()
    assert 0.8 * allowed <= fit.factors.n_params <= allowed
    assert share != "same" or fit.error <= 1e-14


def test_one_rank_for_all_blocks() -> None:
    factors = hodlr(smooth(64, 64), 3, leaf=8)
    assert {b.rank for b in factors.blocks} == {3, None}
    # Of the 8 x 8 blocks off the diagonal, rank 4 would cost as much as the entries.
    costly = hodlr(smooth(64, 64), 4, leaf=8)
    assert all(b.rank is None for b in costly.blocks if b.rows == 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sketches_grow_until_they_are_within(dtype: torch.dtype) -> None:
    decay = 0.9 ** torch.arange(200, dtype=dtype)
    left = torch.linalg.qr(seeded(600, 200, dtype=dtype))[0]
    right = torch.linalg.qr(seeded(560, 200, seed=1, dtype=dtype))[0]
    matrix = (left * decay) @ right.T
    for energy in (1e-2, 1e-6, 1e-10):
        basis, rest = adaptive_range(matrix, energy, 300, torch.Generator().manual_seed(0))
        off = matrix.double() - basis.double() @ (basis.T @ matrix).double()
        assert float(off.square().sum()) <= energy * (1 + 1e-3)
        assert rest <= energy
        # Not more than twice the columns that any basis needs, and one block.
        needed = int((decay.double().square().flip(0).cumsum(0).flip(0) > energy).sum())
        assert basis.shape[1] <= 2 * needed + 32
        unit = torch.eye(basis.shape[1], dtype=dtype)
        assert float((basis.T @ basis - unit).norm()) <= 100 * torch.finfo(dtype).eps
    short, rest = adaptive_range(matrix, 1e-12, 20, torch.Generator().manual_seed(0))
    assert short.shape[1] == 20
    assert rest > 1e-12


def test_large_blocks_are_sketched_as_well_as_taken_apart() -> None:
    weight = smooth(1100, 1100).float()
    fit = fit_hodlr(weight, error=1e-3, leaf=128, random_state=0)
    assert fit.error <= 1e-3
    again = fit_hodlr(weight, error=1e-3, leaf=128, random_state=0)
    assert torch.equal(fit.factors.left, again.factors.left)
    before = torch.get_rng_state()
    shared = fit_hodlr(weight, 0.2, leaf=128)
    assert torch.equal(torch.get_rng_state(), before)
    assert shared.factors.n_params <= 0.2 * weight.numel()
    exact = fit_hodlr(weight.double(), error=1e-3, leaf=600)
    assert exact.error <= 1e-3


@pytest.mark.parametrize("rule", ["weak", "strong"])
@pytest.mark.parametrize("rank", [1, 5, 15])
def test_with_inputs_too_what_is_not_admissible_is_dense(rule: str, rank: int) -> None:
    weight, gram = seeded(128, 128), moments(128, "full")
    usual = hierarchical(weight, rank, leaf=32, admissible=rule)
    fit = fit_hierarchical(weight, rank, leaf=32, admissible=rule, gram=gram)
    assert fit.factors.blocks == usual.blocks
    distance = 1 if rule == "weak" else 2
    for b in fit.factors.blocks:
        if abs(b.row - b.column) < distance * 32:
            assert b.rank is None
    # Each sweep fits the dense blocks to what the others leave.
    assert all(after < before for before, after in pairwise(fit.errors[:-1]))


@pytest.mark.parametrize("rule", ["weak", "strong", "all"])
def test_an_int_takes_each_block_apart_once(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest admissible blocks, and none of their quarters."""
    entries = []
    apart = Forest._take_apart

    def counted(self: Forest, block: Tensor, *rest: Any, **options: Any) -> Any:
        entries.append(block.numel())
        return apart(self, block, *rest, **options)

    monkeypatch.setattr(Forest, "_take_apart", counted)
    factors = hierarchical(smooth(128, 128), 2, leaf=8, admissible=rule)
    low = [b for b in factors.blocks if b.rank is not None]
    assert sorted(entries) == sorted(b.rows * b.columns for b in low)


@pytest.mark.parametrize("share", [0.001, 0.0244, 0.03, 0.1])
@pytest.mark.parametrize("metric", [False, True])
def test_a_small_share_is_exceeded_by_no_more_than_the_smallest_block(
    share: float, metric: bool
) -> None:
    gram = moments(64, "full") if metric else None
    for weight in (seeded(64, 64), seeded(64, 1) @ seeded(1, 64, seed=1)):
        factors = hierarchical(weight, share, leaf=8, admissible="all", gram=gram)
        assert 0 < factors.n_params <= max(math.floor(share * 64 * 64), 8 + 8)


def test_refusals() -> None:
    weight = seeded(32, 32)
    for leaf in (0, 1.5, True, "8"):
        with pytest.raises(ArgumentError, match="leaf="):
            hierarchical(weight, 1, leaf=leaf)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="admissible='some' is unknown"):
        hierarchical(weight, 1, admissible="some")
    with pytest.raises(RankError, match="not admissible"):
        hodlr(weight, 0.2, leaf=8)
    with pytest.raises(UnsupportedError, match="svd, kron or tucker"):
        hodlr(seeded(4, 4, 3, 3), 1)
