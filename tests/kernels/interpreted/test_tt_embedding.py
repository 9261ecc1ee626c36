"""The kernel of tt_embedding in Triton's interpreter, against float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tensorlrf_kernels.launches import Problem
from tensorlrf_kernels.tt_embedding import fused
from tensorlrf_kernels.tt_embedding.launch import forward
from tests.kernels.drawn.embedding import draw_indices, forward_bound, trains
from tests.kernels.drawn.lowrank import assert_within
from tests.kernels.interpreted.running import CHIP, DTYPES, run

pytestmark = pytest.mark.interpreter


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    M=st.integers(1, 40),
    sizes=st.tuples(*[st.integers(1, 9)] * 2, *[st.integers(1, 70)] * 2),
    R=st.integers(1, 64),
    dtype=st.sampled_from(DTYPES),
    turned=st.booleans(),
    cut=st.booleans(),
    each=st.sampled_from([1, 4]),
)
@example(M=1, sizes=(1, 1, 1, 1), R=1, dtype=torch.float16, turned=False, cut=False, each=1)
@example(M=37, sizes=(5, 6, 70, 65), R=64, dtype=torch.float16, turned=True, cut=True, each=4)
def test_rows_of_a_train(M, sizes, R, dtype, turned, cut, each) -> None:  # type: ignore[no-untyped-def]
    n, d = sizes[0] * sizes[1], sizes[2] * sizes[3]
    shape = (max(1, n - 2), max(1, d - 3)) if cut else (n, d)
    o = trains(sizes, R, draw_indices(M, shape[0]), dtype, shape)
    if turned:  # as a merged half has them
        o.one = o.one.permute(2, 0, 1).contiguous().permute(1, 2, 0)
        o.other = o.other.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    config = forward(fused.problem_of(o.indices, o.one, shape), CHIP)
    assert config is not None
    config = replace(config, blocks={**config.blocks, "EACH": each})
    calls, y = fused.forward_calls(config, o.indices, o.one, o.other, shape)
    y.fill_(math.nan)
    run(calls)
    assert_within(y, o.table()[o.indices], forward_bound(o), "y")


def test_what_no_kernel_serves() -> None:
    problem = Problem(5, 6, 7, 64, torch.float32)
    assert forward(problem, CHIP) is not None
    for other in ({"rank": 65}, {"rows": 0}, {"dtype": torch.float64}):
        assert forward(problem._replace(**other), CHIP) is None
