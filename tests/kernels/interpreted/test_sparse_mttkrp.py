"""The kernels of sparse_mttkrp in Triton's interpreter, against float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf_kernels.sparse_mttkrp import fused
from tensorlrf_kernels.sparse_mttkrp.launch import DTYPES, forward
from tests.kernels.drawn.lowrank import assert_within
from tests.kernels.drawn.sparse import Nonzeros, bound, draw, exact
from tests.kernels.interpreted.running import CHIP, run

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("ieee_float32")]


def made(o: Nonzeros, **blocks: int) -> Tensor:
    """By the kernels, launched as the heuristic has it but for `blocks`."""
    config = forward(fused.problem_of(o.values, o.starts, o.factors), CHIP)
    assert config is not None
    config = replace(config, blocks={**config.blocks, **blocks})
    calls, y = fused.forward_calls(config, *o.operands)
    calls[1].args["partials"].fill_(math.nan)
    run(calls[:1])  # which fills what it writes with NaN
    filled = y.clone()
    calls[1].launch()
    assert bool((filled.isnan() | (filled == y)).all())  # a row is written by one of them
    return y


@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    columns=st.integers(1, 12),
    dtype=st.sampled_from(DTYPES),
    index=st.sampled_from([torch.int32, torch.int64]),
    longest=st.sampled_from([2, 16]),
)
@example(  # long rows beside empty ones, at either end too
    lengths=[0, 21, 0, 1, 2, 3, 0], sizes=[5, 3], columns=9, dtype=torch.float32,
    index=torch.int32, longest=2,
)  # fmt: skip
def test_sums_of_rows(lengths, sizes, columns, dtype, index, longest) -> None:  # type: ignore[no-untyped-def]  # of strategies
    if not sum(lengths):
        lengths = [*lengths, 1]
    o = draw(lengths, sizes, columns, dtype, index=index)
    found = made(o, BR=4, BC=8, LONGEST=longest, BS=4)
    assert_within(found, exact(o), bound(o))
    assert torch.equal(found, made(o, BR=4, BC=8, LONGEST=longest, BS=4))


def test_as_the_heuristic_launches_it() -> None:
    o = draw([3, 0, 150, 64, 65], (6, 7), 16)
    assert_within(made(o), exact(o), bound(o))


def test_what_is_not_finite_stays_in_its_row() -> None:
    o = draw([5, 3, 40, 6], (6, 7), 4)
    for place, row in ((6, 1), (30, 2)):
        o.values[:] = 1.0
        o.values[place] = math.nan
        y = made(o, BR=4, BC=8, LONGEST=4, BS=4)
        rest = torch.arange(4) != row
        assert bool(y[rest].isfinite().all())
        assert bool(y[row].isnan().all())
