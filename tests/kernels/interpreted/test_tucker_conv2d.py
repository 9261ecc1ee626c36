"""The kernel of tucker_conv2d in Triton's interpreter, against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tensorlrf_kernels._activation import ACTIVATIONS
from tensorlrf_kernels.geometry import Geometry, problem
from tensorlrf_kernels.tucker_conv2d import fused
from tensorlrf_kernels.tucker_conv2d.launch import forward
from tests.kernels.drawn.conv import LAYOUTS, draw_conv, exact, forward_bound
from tests.kernels.drawn.lowrank import assert_within
from tests.kernels.drawn.strategies import geometries, kernels
from tests.kernels.interpreted.running import CHIP, DTYPES, run

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("ieee_float32")]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 40), st.integers(1, 70)),
    rank=st.integers(1, 40),
    image=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    kernel=kernels,
    geometry=geometries,
    dtype=st.sampled_from(DTYPES),
    bias=st.booleans(),
    activation=st.sampled_from([None, *ACTIVATIONS]),
    layout=st.sampled_from(sorted(LAYOUTS)),
    split=st.sampled_from([1, 2]),
)
@example(
    batch=1, channels=(1, 1), rank=1, image=(1, 1), kernel=(1, 1), geometry=Geometry(),
    dtype=torch.float16, bias=True, activation="gelu", layout="rows", split=1,
)  # fmt: skip
@example(
    batch=2, channels=(130, 65), rank=256, image=(7, 9), kernel=(3, 3),
    geometry=Geometry((2, 1), (1, 1), (1, 2)), dtype=torch.float16, bias=False, activation=None,
    layout="gaps", split=2,
)  # fmt: skip
def test_forward(  # type: ignore[no-untyped-def]
    batch, channels, rank, image, kernel, geometry, dtype, bias, activation, layout, split
) -> None:
    size = geometry.output(image, kernel)
    assume(min(size) >= 1)
    o = draw_conv(batch, channels, rank, image, kernel, geometry, dtype, bias=bias, layout=layout)
    asked = problem(o.x, size, channels[1], o.core[0].numel(), rank, tf32=False)
    config = forward(asked, CHIP)
    assert config is not None
    config = replace(config, blocks={**config.blocks, "BN": 32, "SPLIT": split})
    calls, y = fused.forward_calls(config, *o.each(), geometry, size, activation)
    run(calls)
    assert y.permute(0, 2, 3, 1).is_contiguous()
    assert_within(y, exact(o, activation), forward_bound(o, activation), "y")


def test_no_wrong_number_beyond_what_the_kernel_serves() -> None:
    geometry = Geometry()
    for size, rank, dtype in (((4, 4), 300, torch.float16), ((4, 4), 8, torch.float64)):
        x = torch.empty(1, 8, 6, 6, dtype=dtype)
        assert forward(problem(x, size, 8, 72, rank, tf32=False), CHIP) is None
    assert forward(problem(torch.empty(0, 8, 6, 6), (4, 4), 8, 72, 4, tf32=False), CHIP) is None
    assert geometry.served((7, 7))
    assert not geometry.served((8, 1))
    assert not geometry._replace(stride=(5, 1)).served((3, 3))
    assert not geometry._replace(dilation=(1, 5)).served((3, 3))
