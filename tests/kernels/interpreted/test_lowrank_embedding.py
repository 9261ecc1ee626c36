"""The kernels of lowrank_embedding in Triton's interpreter, against float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf_kernels.launches import Problem, launch
from tensorlrf_kernels.lowrank_embedding import fused
from tensorlrf_kernels.lowrank_embedding import reference as rows
from tensorlrf_kernels.lowrank_embedding.launch import backward, forward
from tests.draws import seeded
from tests.kernels.drawn.embedding import draw_indices, forward_bound, gradient_bounds, matrices
from tests.kernels.drawn.lowrank import LAYOUTS, assert_within, roundoff
from tests.kernels.interpreted.running import CHIP, DTYPES, run

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("ieee_float32")]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    M=st.integers(1, 150),
    n=st.integers(1, 90),
    d=st.integers(1, 150),
    r=st.integers(1, 70),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(sorted(LAYOUTS)),
    index=st.sampled_from([torch.int32, torch.int64]),
    split=st.sampled_from([1, 2, 4]),
    mixed=st.booleans(),
)
@example(
    M=1, n=1, d=1, r=1, dtype=torch.float16, layout="rows", index=torch.int64, split=1, mixed=True
)
@example(  # a rank in several blocks
    M=70, n=40, d=130, r=300, dtype=torch.float16, layout="columns", index=torch.int32, split=2,
    mixed=False,
)  # fmt: skip
@example(  # one that is held
    M=130, n=40, d=260, r=200, dtype=torch.float16, layout="gaps", index=torch.int64, split=2,
    mixed=True,
)  # fmt: skip
def test_forward(M, n, d, r, dtype, layout, index, split, mixed) -> None:  # type: ignore[no-untyped-def]
    o = matrices(n, d, r, draw_indices(M, n).to(index), dtype)
    if mixed:
        o.one = o.one.float()
    o.one, o.other = LAYOUTS[layout](o.one), LAYOUTS[layout](o.other)
    config = forward(fused.problem_of(o.indices, o.one, o.other), CHIP)
    assert config is not None
    blocks = {**config.blocks, "SPLIT": min(split, -(-d // config.blocks["BN"]))}
    calls, y = fused.forward_calls(replace(config, blocks=blocks), o.indices, o.one, o.other)
    y.fill_(math.nan)
    run(calls)
    assert y.dtype == dtype
    assert_within(y, o.table()[o.indices.long()], forward_bound(o), "y")


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    M=st.integers(1, 90),
    n=st.integers(1, 90),
    spread=st.sampled_from([1, 2, 5, 90]),
    C=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    padding=st.booleans(),
    index=st.sampled_from([torch.int32, torch.int64]),
)
@example(M=200, n=7, spread=1, C=33, dtype=torch.float16, padding=False, index=torch.int64)
@example(M=90, n=7, spread=2, C=33, dtype=torch.float32, padding=True, index=torch.int64)
@example(M=16, n=3, spread=3, C=1, dtype=torch.float32, padding=False, index=torch.int64)
def test_sums_of_equal_indices(M, n, spread, C, dtype, padding, index) -> None:  # type: ignore[no-untyped-def]
    indices = draw_indices(M, n, spread=spread)
    padding_idx = int(indices[M // 2]) if padding else None
    values = seeded(M, C, seed=1).to(dtype)
    config = backward(Problem(M, C, n, C, dtype), CHIP)
    assert config is not None
    total = summed(config, values, indices.to(index), n, padding_idx, dtype)
    expected, size = (
        rows.segment_sums(f(values.double()), indices, n, padding_idx, torch.float64)
        for f in (lambda t: t, torch.abs)
    )
    bound = M * roundoff(torch.float32) * size + roundoff(dtype) * expected.abs() + 1e-7
    assert_within(total, expected, bound, "sums")
    again = summed(config, values, indices.to(index), n, padding_idx, dtype)
    assert torch.equal(total, again)


def summed(config, values, indices, n, padding_idx, dtype) -> Tensor:  # type: ignore[no-untyped-def]
    calls, total = fused.segment_calls(config, values, indices, n, padding_idx, dtype)
    for name in ("first_parts", "last_parts"):
        calls[0].args[name].fill_(math.nan)
    launch(calls)
    return total


@pytest.mark.parametrize("needed", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_both_gradients_as_a_gpu_makes_them(dtype: torch.dtype, needed: tuple[bool, bool]) -> None:
    o = matrices(30, 40, 20, draw_indices(70, 30, spread=6), dtype, padding_idx=0)
    assert bool((o.indices == 0).any())
    o.one = o.one.float()  # beside a right of half precision too
    dy = seeded(70, 40, seed=5).to(dtype)
    found = fused.backward(dy, o.indices, o.one, o.other, 0, needed)
    expected, bounds = o.gradients(dy), gradient_bounds(o, dy)
    assert [g is not None for g in found] == list(needed)
    for g, want, bound, t in zip(found, expected, bounds, (o.one, o.other), strict=True):
        if g is not None:
            assert g.dtype == t.dtype
            assert_within(g, want, bound, str(tuple(g.shape)))


def test_what_is_not_finite_stays_in_its_row() -> None:
    values, indices = seeded(100, 5).float(), draw_indices(100, 9)
    values[7, 3] = math.inf
    values[8, 2] = math.nan
    config = backward(Problem(100, 5, 9, 5, torch.float32), CHIP)
    assert config is not None
    total = summed(config, values, indices, 9, None, torch.float32)
    expected = rows.segment_sums(values, indices, 9, None, torch.float32)
    torch.testing.assert_close(total, expected, equal_nan=True, rtol=1e-5, atol=1e-5)
    assert int(total.isfinite().logical_not().sum()) == 2


def test_what_no_kernel_serves() -> None:
    problem = Problem(5, 6, 7, 4, torch.float64)
    for choose in (forward, backward):
        assert choose(problem, CHIP) is None
        assert choose(problem._replace(rows=0, dtype=torch.float32), CHIP) is None
        assert choose(problem._replace(dtype=torch.float32), CHIP) is not None


@pytest.mark.slow
def test_offsets_beyond_31_bits() -> None:
    """Rows of left that lie more than 2^31 elements apart; 4 GiB are mapped."""
    o = matrices(3, 20, 16, torch.tensor([2, 0, 1, 2]), torch.float16)
    far = torch.empty(2**31 + 64, dtype=torch.float16)
    left = far.as_strided((3, 16), (2**30 + 8, 1))
    left.copy_(o.one)
    o.one = left
    config = forward(fused.problem_of(o.indices, o.one, o.other), CHIP)
    assert config is not None
    calls, y = fused.forward_calls(config, o.indices, o.one, o.other)
    run(calls)
    assert_within(y, o.table()[o.indices], forward_bound(o), "y")
