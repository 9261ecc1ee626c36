"""The kernel of mttkrp in Triton's interpreter, against float64."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf_kernels.mttkrp import fused
from tensorlrf_kernels.mttkrp.groups import groups_of
from tensorlrf_kernels.mttkrp.kernel import halves
from tensorlrf_kernels.mttkrp.launch import DTYPES, forward
from tests.kernels.drawn.lowrank import LAYOUTS, assert_within
from tests.kernels.drawn.mttkrp import Contraction, bound, draw, exact, norm_bound, others
from tests.kernels.interpreted.running import CHIP, run

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("ieee_float32")]


def made(o: Contraction, **blocks: int) -> Tensor:
    """By the kernel, launched as the heuristic has it but for `blocks`."""
    groups = groups_of(o.tensor.shape, o.tensor.stride(), o.modes)
    assert groups is not None
    problem = fused.problem_of(o.tensor, o.modes, o.factors[0].shape[1], groups)
    config = forward(problem, CHIP)
    assert config is not None
    config = replace(config, blocks={**config.blocks, **blocks})
    calls, parts = fused.forward_calls(config, o.tensor, o.factors, o.modes, groups)
    run(calls)
    return fused.collect(parts)


@st.composite
def contractions(draw_from: st.DrawFn) -> dict[str, Any]:
    order = draw_from(st.integers(2, 5))
    largest = {2: 90, 3: 30, 4: 12, 5: 7}[order]
    sizes = draw_from(st.lists(st.integers(1, largest), min_size=order, max_size=order))
    mode = draw_from(st.integers(0, order - 1))
    return {
        "sizes": sizes,
        "modes": others(order, mode),
        "order": draw_from(st.permutations(range(order))),
    }


@settings(max_examples=30, deadline=None)
@given(
    case=contractions(),
    columns=st.integers(1, 70),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(sorted(LAYOUTS)),
    splits=st.integers(1, 20),
    tile=st.sampled_from([16, 64]),
)
@example(
    case={"sizes": [33, 5, 70], "modes": (0, 2), "order": [0, 1, 2]}, columns=130,
    dtype=torch.float32, layout="gaps", splits=3, tile=64,
)  # fmt: skip
def test_mttkrp(case, columns, dtype, layout, splits, tile) -> None:  # type: ignore[no-untyped-def]  # of strategies
    o = draw(**case, columns=columns, dtype=dtype, layout=layout)
    assert_within(made(o, SPLITS=splits, BM=tile), exact(o), bound(o))


@pytest.mark.parametrize(
    ("sizes", "modes"),
    [
        ((7, 30, 9), (1,)),  # free modes on both sides, as blocks
        ((5, 6, 7, 8), (1, 2)),
        ((5, 6, 7, 8), (3, 0)),
        ((6, 1, 9, 1), (0, 1, 3)),  # modes of size one only scale
        ((1, 1, 4), (0, 1)),
        ((4, 5, 6), (0, 1, 2)),  # none is left
    ],
    ids=str,
)
def test_any_modes_may_be_contracted(sizes: tuple[int, ...], modes: tuple[int, ...]) -> None:
    for dtype in DTYPES:
        o = draw(sizes, modes, 17, dtype)
        assert_within(made(o), exact(o), bound(o), str(dtype))


def test_long_sums_of_every_kind() -> None:
    """An outer index with units of its own, and two rows to a K tile, not merged in memory."""
    for sizes, modes in (((20, 3, 600), (1, 2)), ((60, 3, 9), (0, 2)), ((3, 3, 30, 40), (1, 2, 3))):
        o = draw(sizes, modes, 12)
        for splits in (2, 7):
            assert_within(made(o, SPLITS=splits), exact(o), bound(o), f"{sizes}, {splits}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", [0, 1, 2])
def test_close_in_norm(mode: int, dtype: torch.dtype) -> None:
    o = draw((50, 40, 60), others(3, mode), 24, dtype)
    right = exact(o)
    # A low half that is left out would cost 1e-4, which the bound of the worst case may hide.
    assert float((made(o).double() - right).norm() / right.norm()) < norm_bound(o)


@triton.jit
def _split(x, high, low, N: tl.constexpr):  # type: ignore[no-untyped-def]  # a kernel
    places = tl.arange(0, N)
    a, b = halves(tl.load(x + places))
    tl.store(high + places, a)
    tl.store(low + places, b)


def test_halves_are_what_tf32_holds() -> None:
    """What the tensor cores read of both loses no more than 4 units roundoff of the whole."""
    x = torch.randn(512, generator=torch.Generator().manual_seed(0))
    x *= torch.logspace(-30, 30, 512)
    x[:3] = torch.tensor([0.0, 1 + 2.0**-11, -1 - 3 * 2.0**-11])
    high, low = torch.full_like(x, math.nan), torch.full_like(x, math.nan)
    _split[(1,)](x, high, low, 512)
    assert not (high.view(torch.int32) & 0x1FFF).any()
    read = (low.view(torch.int32) & ~0x1FFF).view(torch.float32)
    off = (high.double() + read.double() - x.double()).abs()
    assert bool((off <= 2.0**-22 * x.double().abs()).all())
    assert bool(((high + low) == x).all())


def test_strides_that_are_no_runs_take_a_copy() -> None:
    o = draw((5, 6, 7, 8, 9), (0, 1, 3, 4), 6)
    gaps = torch.zeros(10, 12, 7, 16, 18)[::2, ::2, :, ::2, ::2].copy_(o.tensor)
    assert groups_of(gaps.shape, gaps.stride(), o.modes) is None
    found = fused.forward(gaps, o.factors, o.modes)
    assert found is not None
    assert_within(found, exact(o), bound(o))


def test_what_is_not_finite_stays_in_its_row() -> None:
    o = draw((70, 6, 9), (1, 2), 12)
    for value in (math.nan, math.inf):
        o.tensor[7, 2, 3] = value
        y = made(o)
        rest = torch.arange(70) != 7
        assert bool(y[rest].isfinite().all())
        assert not bool(y[7].isfinite().any())


@pytest.mark.slow
@pytest.mark.parametrize("far", [0, 1, 2])
@pytest.mark.parametrize("mode", [0, 1, 2])
def test_offsets_beyond_31_bits(mode: int, far: int) -> None:
    """Entries that lie more than 2^31 elements apart in one mode; 8 GiB are mapped."""
    o = draw((3, 4, 5), others(3, mode), 6)
    step = 2**30 + 60
    strides = [step if k == far else stride for k, stride in enumerate(o.tensor.stride())]
    view = torch.empty(4 * step + 60).as_strided((3, 4, 5), strides)
    view.copy_(o.tensor)
    assert_within(made(replace(o, tensor=view)), exact(o), bound(o))
