"""Uniform ranks: the budget is an upper bound, and it is used."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tensorlrf import CP
from tensorlrf.compression.plan._uniform import Scale, uniform
from tensorlrf.decomposition.ladder import Ladder, Rung, matrix_ladder, rounded
from tensorlrf.decomposition.tucker._tucker import tucker_ladder

sizes = st.integers(1, 96)
kernels = st.tuples(sizes, sizes, st.sampled_from([1, 3, 5]), st.sampled_from([2, 3]))
shares = st.floats(0.01, 1.0)


@st.composite
def ladders(draw: st.DrawFn) -> list[Ladder]:
    matrices = [matrix_ladder(m, n) for m, n in draw(st.lists(st.tuples(sizes, sizes), max_size=4))]
    cps = [CP().ladder(shape, 1) for shape in draw(st.lists(kernels, max_size=3))]
    ratio = draw(st.tuples(st.floats(0.1, 1.0), st.floats(0.1, 1.0)))
    tuckers = [tucker_ladder(shape, ratio) for shape in draw(st.lists(kernels, max_size=3))]
    drawn = [ladder for ladder in matrices + cps + tuckers if ladder.rungs]
    return drawn or [matrix_ladder(64, 64)]


def allocate(ladders: list[Ladder], share: float) -> list[Rung | None]:
    """Of a budget of parameters."""
    scales = [Scale(lad.dense, tuple(rung.params for rung in lad.rungs)) for lad in ladders]
    at = uniform(scales, share)
    return [None if k is None else lad.rungs[k] for lad, k in zip(ladders, at, strict=True)]


def is_rounded(rank: int) -> bool:
    return 1 <= rank < 8 or rank % 8 == 0


@given(ladders(), shares)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_budget_is_an_upper_bound_and_ranks_are_rounded(ladders: list[Ladder], keep: float) -> None:
    budget = keep * sum(ladder.dense for ladder in ladders)
    assume(sum(ladder.rungs[0].params for ladder in ladders) <= budget)
    rungs = allocate(ladders, keep)
    used = sum(
        ladder.dense if rung is None else rung.params
        for ladder, rung in zip(ladders, rungs, strict=True)
    )
    assert used <= budget + 1e-6
    for ladder, rung in zip(ladders, rungs, strict=True):
        assert rung is None or rung in ladder.rungs
        assert rung is None or rung.params < ladder.dense
    # No layer could climb one more rung with what is left.
    for ladder, rung in zip(ladders, rungs, strict=True):
        if rung is not None and rung is not ladder.rungs[-1]:
            above = ladder.rungs[ladder.rungs.index(rung) + 1]
            assert used - rung.params + above.params > math.floor(budget)


@given(kernels, st.tuples(st.floats(0.1, 1.0), st.floats(0.1, 1.0)))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_tucker_ladder_climbs_along_the_ratio(
    shape: tuple[int, int, int, int], ratio: tuple[float, float]
) -> None:
    O, I, kh, kw = shape
    params = 0
    for rung in tucker_ladder(shape, ratio).rungs:
        r_out, r_in = rung.rank if isinstance(rung.rank, tuple) else (rung.rank, I)
        assert (rung.of, rung.own) == (("svd", (r_out, I)) if r_in == I else (None, None))
        stored = r_out * r_in * kh * kw + O * r_out + (0 if r_in == I else I * r_in)
        assert rung.params == stored
        assert params < rung.params < O * I * kh * kw
        params = rung.params
        assert is_rounded(r_out) or r_out == O
        assert is_rounded(r_in) or r_in == I
        # Both ranks come from one t: the intervals of t that round to them meet.
        low_out, high_out = interval(r_out, O, ratio[0])
        low_in, high_in = interval(r_in, I, ratio[1])
        assert max(low_out, low_in) <= min(high_out, high_in) * (1 + 1e-9)


def interval(rank: int, n: int, share: float) -> tuple[float, float]:
    """The t with this rank on a side of n channels."""
    if n < 8:
        return 0, math.inf
    above = rank + (1 if rank < 8 else 8)
    low = 0 if rank == 1 else rank / (share * n)
    return low, math.inf if rank == n else above / (share * n)


def test_tucker_leaves_a_side_of_few_channels_whole() -> None:
    # With all three input channels, Tucker-2 of (64, 3, 3, 3) is the low-rank form.
    assert tucker_ladder((64, 3, 3, 3), (0.7, 1.0)) == matrix_ladder(64, 27)
    assert all(
        isinstance(rung.rank, tuple) and rung.rank[0] == 2
        for rung in tucker_ladder((2, 64, 3, 3), (0.7, 1.0)).rungs
    )


def test_uniform_share_on_layers_of_one_kind() -> None:
    ladders = [matrix_ladder(256, 1024)] * 5
    rungs = allocate(ladders, 0.4)
    # 0.4 * 256 * 1024 / 1280 = 81.92: rank 80 for each, and 8 more for the one layer that
    # 5 * 1.92 * 1280 = 12,288 left-over parameters pay for.
    assert sorted(rung.rank for rung in rungs if rung is not None) == [80, 80, 80, 80, 88]


def test_a_layer_without_a_rank_stays_dense_and_the_others_pay() -> None:
    big, tiny = matrix_ladder(128, 128), matrix_ladder(64, 2)
    rungs = allocate([big, tiny], 0.3)
    assert rungs[1] is None  # rank 1 costs 66 of 128 parameters
    assert rungs[0] is not None
    assert rungs[0].params + tiny.dense <= 0.3 * (big.dense + tiny.dense)
    # Where the others cannot pay, it takes its first rung rather than break the bound.
    rungs = allocate([tiny, tiny], 0.52)
    assert [r.rank for r in rungs if r is not None] == [1, 1]


@pytest.mark.parametrize(("rank", "expected"), [(0.3, 0), (7.9, 7), (8.0, 8), (15.99, 8), (64, 64)])
def test_rounded(rank: float, expected: int) -> None:
    assert rounded(rank) == expected
