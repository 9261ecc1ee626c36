"""The kernels of cp_conv2d in Triton's interpreter, against float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tensorlrf_kernels._activation import ACTIVATIONS
from tensorlrf_kernels.cp_conv2d import fused, reference
from tensorlrf_kernels.cp_conv2d.launch import backward, columns_of, forward, tile
from tensorlrf_kernels.geometry import Geometry, problem
from tensorlrf_kernels.launches import launch
from tests.draws import seeded
from tests.kernels.drawn.conv import LAYOUTS
from tests.kernels.drawn.cp_conv import draw_cp, exact, forward_bound
from tests.kernels.drawn.lowrank import assert_within, roundoff
from tests.kernels.drawn.strategies import geometries, kernels
from tests.kernels.interpreted.running import CHIP, DTYPES, run

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("ieee_float32")]

CASES = {
    "batch": st.integers(1, 3),
    "rank": st.integers(1, 40),
    "image": st.tuples(st.integers(1, 12), st.integers(1, 40)),
    "kernel": kernels,
    "geometry": geometries,
    "dtype": st.sampled_from(DTYPES),
}


@settings(max_examples=28, deadline=None, derandomize=True)
@given(
    channels=st.tuples(st.integers(1, 40), st.integers(1, 70)),
    bias=st.booleans(),
    activation=st.sampled_from([None, *ACTIVATIONS]),
    layout=st.sampled_from(sorted(LAYOUTS)),
    whole=st.booleans(),
    **CASES,
)
@example(
    batch=1, channels=(1, 1), rank=1, image=(1, 1), kernel=(1, 1), geometry=Geometry(),
    dtype=torch.float16, bias=True, activation="gelu", layout="rows", whole=True,
)  # fmt: skip
@example(
    batch=1, channels=(70, 65), rank=200, image=(5, 140), kernel=(3, 7),
    geometry=Geometry((2, 1), (1, 3), (1, 4)), dtype=torch.float16, bias=False, activation=None,
    layout="gaps", whole=False,
)  # fmt: skip
def test_forward(  # type: ignore[no-untyped-def]
    batch, channels, rank, image, kernel, geometry, dtype, bias, activation, layout, whole
) -> None:
    size = geometry.output(image, kernel)
    assume(min(size) >= 1)
    o = draw_cp(batch, channels, rank, image, kernel, geometry, dtype, bias=bias, layout=layout)
    asked = problem(o.x, size, channels[1], channels[0], rank, tf32=False)
    config = forward(asked, replace(CHIP, multiprocessors=1))
    assert config is not None
    if not whole or rank > 128:
        config = fused.up_to_taps(config)
    else:
        blocks = {**config.blocks, "EXPAND": 1, "BR": 1 << max(4, (rank - 1).bit_length())}
        config = replace(config, blocks=blocks)
    calls, made = fused.forward_calls(config, o.x, o.factors, o.bias, geometry, size, activation)
    made.fill_(math.nan)
    run(calls)
    assert made.permute(0, 2, 3, 1).is_contiguous()
    if config.blocks["EXPAND"]:
        assert_within(made, exact(o, activation), forward_bound(o, activation), "y")
    else:
        taps = o.up_to_taps()
        assert_within(made, exact(taps, None), forward_bound(taps, None), "u")


@settings(max_examples=10, deadline=None, derandomize=True)
@given(want_t=st.booleans(), want_parts=st.booleans(), chunk=st.sampled_from([64, 128]), **CASES)
@example(
    batch=2, rank=70, image=(9, 11), kernel=(3, 3), geometry=Geometry((2, 3), (1, 2), (2, 1)),
    dtype=torch.float16, want_t=True, want_parts=True, chunk=64,
)  # fmt: skip
def test_backward_of_the_taps(  # type: ignore[no-untyped-def]
    batch, rank, image, kernel, geometry, dtype, want_t, want_parts, chunk
) -> None:
    size = geometry.output(image, kernel)
    assume(min(size) >= 1 and (want_t or want_parts))
    factors = draw_cp(batch, (3, 4), rank, image, kernel, geometry, dtype).factors
    last = {"memory_format": torch.channels_last}
    t = seeded(batch, rank, *image, seed=7).to(dtype).contiguous(**last)
    du = seeded(batch, rank, *size, seed=8).to(dtype).contiguous(**last)
    asked = problem(t, image, rank, rank, rank, tf32=False)
    config = backward(asked, CHIP)
    assert config is not None
    config = replace(config, blocks={**config.blocks, "CHUNK": chunk})
    calls, (dt, parts) = fused.backward_calls(
        config, t, du, factors, geometry, want_t=want_t, want_parts=want_parts
    )
    dt.fill_(math.nan)
    parts.fill_(math.nan)
    launch(calls)

    def of(convert, *tensors):  # type: ignore[no-untyped-def]
        one, other, *rest = (convert(x.double()) for x in tensors)
        return reference.taps_backward(one, other, tuple(rest), geometry, True, True)

    wanted = of(lambda x: x, t, du, *factors)
    sizes = of(torch.abs, t, du, *factors)
    u32, taps = roundoff(torch.float32), kernel[0] * kernel[1]
    if want_t:
        room = ((taps + 4) * u32 + roundoff(dtype)) * sizes[0] + 1e-7 * (dtype == torch.float16)
        assert_within(dt, wanted[0], room + 1e-30, "dt")
    if want_parts:
        summed = parts.double().sum(0).view(*kernel, rank)
        assert_within(summed, wanted[1], (chunk + 4) * u32 * sizes[1] + 1e-30, "sums")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    places=st.sampled_from([32, 64, 128, 256]),
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    width=st.integers(1, 7),
    geometry=geometries,
)
def test_a_tile_reaches_as_far_as_its_taps(  # type: ignore[no-untyped-def]
    places, size, width, geometry
) -> None:
    reach = (width - 1) * geometry.dilation[1]
    BH, BW = tile(places, size, width, geometry)
    assert places == BH * BW
    columns = columns_of(BW, reach, geometry.stride[1])
    assert columns >= 1
    assert (columns - 1) * geometry.stride[1] + reach < BW


def test_what_no_kernel_serves() -> None:
    x = torch.empty(1, 8, 6, 6, dtype=torch.float64)
    assert forward(problem(x, (4, 4), 8, 8, 4, tf32=False), CHIP) is None
    assert forward(problem(x.float()[:0], (4, 4), 8, 8, 4, tf32=False), CHIP) is None
    assert backward(problem(x, (4, 4), 8, 8, 4, tf32=False), CHIP) is None
