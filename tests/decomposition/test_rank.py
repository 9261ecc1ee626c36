"""From what a user calls a rank to whole numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorlrf.decomposition import (
    blast,
    blr,
    cp,
    hierarchical,
    hodlr,
    kron,
    monarch,
    svd,
    tr,
    tt,
    tt_cross,
    tt_matrix,
    tt_round,
    tucker,
)
from tensorlrf.decomposition.rank import (
    check_rank_or_error,
    cp_rank,
    matrix_rank,
    tucker_params,
    tucker_ranks,
)
from tensorlrf.errors import ArgumentError, RankError

shares = st.floats(0.01, 1.0)
shapes = st.lists(st.integers(1, 9), min_size=2, max_size=4).map(tuple)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(shape=shapes, share=shares)
def test_a_share_is_an_upper_bound_of_what_svd_stores(shape: tuple[int, ...], share: float) -> None:
    factors = svd(torch.ones(shape), share, solver="exact")
    dense = math.prod(shape)
    assert factors.n_params <= share * dense or factors.rank == 1
    m, n = shape[0], dense // shape[0]
    if factors.rank < min(m, n):
        assert (factors.rank + 1) * (m + n) > share * dense * (1 - 1e-12)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(shape=shapes, share=shares, data=st.data())
def test_a_share_is_an_upper_bound_of_what_tucker_stores(
    shape: tuple[int, ...], share: float, data: st.DataObject
) -> None:
    subset = st.sets(st.integers(0, len(shape) - 1), min_size=1)
    modes = tuple(sorted(data.draw(subset, label="modes")))
    factors = tucker(torch.ones(shape), share, modes=modes, solver="st_hosvd")
    dense = math.prod(shape)
    assert factors.n_params == tucker_params(shape, modes, factors.rank)
    assert factors.n_params <= share * dense or set(factors.rank) == {1}


@settings(derandomize=True, deadline=None, max_examples=30)
@given(shape=shapes, share=shares)
def test_the_share_of_tucker_is_the_largest_on_its_path(
    shape: tuple[int, ...], share: float
) -> None:
    """Ranks are floor(f n_k) for one fraction f: no larger f keeps within the share."""
    modes = tuple(range(len(shape)))
    chosen = tucker_ranks(share, shape, modes)
    steps = sorted({i / n for n in shape for i in range(1, n + 1)})
    path = [tuple(max(1, math.floor(f * (1 + 1e-12) * n)) for n in shape) for f in steps]
    within = [p for p in path if tucker_params(shape, modes, p) <= share * math.prod(shape)]
    if within:
        assert chosen == max(within, key=lambda p: tucker_params(shape, modes, p))
    else:
        assert tucker_params(shape, modes, chosen) <= min(
            tucker_params(shape, modes, p) for p in path
        )


@settings(derandomize=True, deadline=None, max_examples=30)
@given(shape=shapes, share=shares)
def test_the_share_of_cp_is_an_upper_bound(shape: tuple[int, ...], share: float) -> None:
    r = cp_rank(share, shape)
    per_term = sum(shape) + 1
    assert r * per_term <= share * math.prod(shape) or r == 1
    assert (r + 1) * per_term > share * math.prod(shape) * (1 - 1e-12)


def test_same_is_the_share_of_one() -> None:
    assert matrix_rank("same", 30, 20) == matrix_rank(1.0, 30, 20) == 12
    assert cp_rank("same", (10, 10, 10)) == cp_rank(1.0, (10, 10, 10))
    assert tucker_ranks("same", (9, 8), (0, 1)) == tucker_ranks(1.0, (9, 8), (0, 1))


def test_counts_of_numpy_are_counts() -> None:
    assert matrix_rank(np.int64(3), 5, 4) == 3  # type: ignore[arg-type]
    assert tucker_ranks((np.int32(2), 3), (4, 5), (0, 1)) == (2, 3)  # type: ignore[arg-type]


def test_cp_takes_a_rank_above_every_dimension() -> None:
    assert cp_rank(50, (3, 4, 5)) == 50


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (0, "rank=0 must be at least 1"),
        (-2, "rank=-2 must be at least 1"),
        (5, "rank=5 is above"),
        (0.0, "rank=0.0 is a float, so a share"),
        (1.5, "rank=1.5 is a float, so a share.*pass an int"),
        ("all", "rank='all' is unknown"),
        (True, "rank=True must be one int"),
        ((2, 2), r"rank=\(2, 2\) must be one int"),
        (None, "rank=None must be one int"),
    ],
)
def test_ranks_that_a_matrix_refuses(rank: object, message: str) -> None:
    with pytest.raises(RankError, match=message):
        matrix_rank(rank, 4, 6)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        ((2, 2), r"rank=\(2, 2\) has 2 entries for 3 factored modes \(0, 1, 2\)"),
        ((2, 2, 9), "asks for rank 9 along mode 2, which has size 6"),
        (7, "asks for rank 7 along mode 0, which has size 4"),
        ((2, 0, 1), r"rank=\(2, 0, 1\): entry 1, 0, must be at least 1"),
        ((2, 1.5, 1), r"rank=\(2, 1\.5, 1\): entry 1, 1\.5, must be one int"),
    ],
)
def test_ranks_that_tucker_refuses(rank: object, message: str) -> None:
    with pytest.raises(RankError, match=message):
        tucker_ranks(rank, (4, 5, 6), (0, 1, 2))  # type: ignore[arg-type]


def rounded_at(weight: torch.Tensor, rank: Any) -> object:
    return tt_round(tt(weight.reshape(4, 4, 4, 4), error=0.0), rank)


def crossed_at(weight: torch.Tensor, rank: Any) -> object:
    cube = weight.reshape(4, 4, 16)
    return tt_cross(lambda i: cube[tuple(i.T)], cube.shape, rank, random_state=0)


def several_at(weight: torch.Tensor, rank: Any) -> object:
    return svd(weight.expand(2, 16, 16), rank, batch_dims=1)


CLIPPED = (tt, tt_matrix, tr, hierarchical, hodlr, rounded_at, crossed_at)
REFUSED = (svd, tucker, cp, kron, blr, monarch, blast, several_at)


@pytest.mark.parametrize("rank", [10**6, 2**40, 2**63 - 1])
@pytest.mark.parametrize("decompose", CLIPPED)
def test_a_count_beyond_the_tensor_is_clipped(decompose: Callable[..., Any], rank: int) -> None:
    weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    dense = decompose(weight, rank).to_dense().reshape(16, 16)
    assert float((dense - weight).norm()) <= 1e-5 * float(weight.norm())


@pytest.mark.parametrize("rank", [10**6, 2**40, 2**63 - 1])
@pytest.mark.parametrize("decompose", REFUSED)
def test_a_count_beyond_the_tensor_is_refused(decompose: Callable[..., Any], rank: int) -> None:
    weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    options = {"block": 8} if decompose is blr else {}
    with pytest.raises(RankError, match=f"rank={rank} .*use at most"):
        decompose(weight, rank, **options)


@pytest.mark.parametrize("decompose", [tucker, tt, tr])
@pytest.mark.parametrize(
    ("entry", "words"), [(2.5, "must be one int"), (0, "must be at least 1"), ("2", "must be one")]
)
def test_one_of_several_ranks_is_named_with_the_others(
    decompose: Callable[..., object], entry: Any, words: str
) -> None:
    rank = (2, 2, entry)[-2 if decompose is tt else -3 :]
    named = re.escape(f"rank={rank!r}: entry {len(rank) - 1}, {entry!r}, {words}")
    with pytest.raises(RankError, match=named):
        decompose(torch.ones(4, 5, 6), rank)


def test_terms_of_cp_that_no_tensor_has_use_for_are_refused() -> None:
    cube = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
    with pytest.raises(RankError, match=r"rank=121 is above 120, the entries.*use at most 20"):
        cp(cube, 121)
    with pytest.raises(RankError, match=r"rank=1000000 makes .* 7,451 GiB each; use at most 65536"):
        cp_rank(10**6, (1000, 1000, 1000))
    assert cp_rank(120, (4, 5, 6)) == 120
    assert cp_rank(64, (1, 1, 1)) == 64


def test_exactly_one_of_rank_and_error() -> None:
    with pytest.raises(RankError, match=r"rank=2\^17000 or more is beyond"):
        check_rank_or_error(2**17000, 0.1)
    check_rank_or_error(3, None)
    check_rank_or_error(None, 0.0)
    with pytest.raises(ArgumentError, match="got neither"):
        check_rank_or_error(None, None)
    with pytest.raises(ArgumentError, match=r"got rank=3 and error=0\.1"):
        check_rank_or_error(3, 0.1)
    for wrong in (1.0, -0.1, float("nan"), True, "small"):
        with pytest.raises(ArgumentError, match=f"error={wrong!r} must be a relative error"):
            check_rank_or_error(None, wrong)  # type: ignore[arg-type]
    for dtype, error, words in (
        (torch.float64, 1e-17, "error=1e-17 is below 2.2e-16, .* float64"),
        (torch.bfloat16, 1e-8, "error=1e-08 is below 1.2e-07, .* float32"),
    ):
        with pytest.raises(ArgumentError, match=words):
            check_rank_or_error(None, error, dtype)
    check_rank_or_error(None, 1e-8, torch.float64)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(m=st.integers(1, 400), n=st.integers(1, 400), r=st.integers(1, 400))
def test_a_share_that_is_just_a_rank_is_that_rank(m: int, n: int, r: int) -> None:
    r = min(r, max(1, m * n // (m + n)))
    if r * (m + n) <= m * n:
        assert matrix_rank(r * (m + n) / (m * n), m, n) == r
