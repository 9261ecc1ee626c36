"""Transposed convolutions on factors are torch's with the kernel of the factors, by any path."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tensorlrf import ops
from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError
from tests.draws import seeded
from tests.nn.samples import inputs_first
from tests.ops.samples import CONV_FORMATS, assert_rounding, random_factors, random_grouped

OURS: dict[int, Any] = {
    1: ops.conv_transpose1d,
    2: ops.conv_transpose2d,
    3: ops.conv_transpose3d,
}
TORCH: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@st.composite
def geometries(draw: st.DrawFn, axes: int) -> dict[str, Any]:
    def ints(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    stride, dilation = ints(1, 3), ints(1, 2)
    more = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
    return {
        "stride": stride,
        "padding": ints(0, 2),
        "output_padding": tuple(more),
        "dilation": dilation,
    }


@pytest.mark.parametrize(("axes", "groups"), [(1, 1), (2, 1), (3, 1), (1, 3), (2, 2)])
@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_every_path_is_the_dense_one_and_costs_what_is_counted(
    axes: int, groups: int, data: st.DataObject
) -> None:
    draw = data.draw
    kernel = [draw(st.integers(1, 3)) for _ in range(axes)]
    shape = (groups * draw(st.integers(1, 5)), draw(st.integers(1, 5)), *kernel)
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))
    format, rank = draw(st.sampled_from(CONV_FORMATS)), draw(st.integers(1, 4))
    factors = random_grouped(format, shape, groups, rank=rank, dtype=dtype)
    batch = draw(st.sampled_from([None, 1, 2]))
    size = [draw(st.integers(1, 6)) for _ in range(axes)]
    x = seeded(*(() if batch is None else (batch,)), groups * shape[1], *size, seed=20, dtype=dtype)
    if draw(st.booleans()) and batch is not None:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    bias = seeded(shape[0], seed=21, dtype=dtype) if draw(st.booleans()) else None
    options = draw(geometries(axes))

    def run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = TORCH[axes](x, inputs_first(weight, groups), bias, groups=groups, **options)
        return y

    try:
        left = run(x, factors.to_dense(), bias).numel()
    except RuntimeError:  # what torch says of most of these
        left = 0
    if not left:
        with pytest.raises(ArgumentError, match="nothing is left"):
            OURS[axes](x, factors, bias, **options)
        return
    where = ops.Positions.of_transposed((batch or 1, *size), kernel, **options)
    assert_rounding(OURS[axes](x, factors, bias, **options), factors, x, bias, run)
    for path in ops.conv_paths(factors, transposed=True):
        with FlopCounterMode(display=False) as counter:
            y = OURS[axes](x, factors, bias, **options, path=path)
        assert_rounding(y, factors, x, bias, run)
        cost = ops.conv_cost(factors, path, where, transposed=True)
        assert cost.flops == counter.get_total_flops()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), format=st.sampled_from(CONV_FORMATS))
def test_it_is_the_adjoint_of_the_convolution(data: st.DataObject, format: str) -> None:
    """<y, T x> = <C y, x> for C the convolution by the kernel with inputs and outputs swapped."""
    options = data.draw(geometries(2))
    more = options.pop("output_padding")
    factors = random_factors(format, (4, 3, 2, 3))
    x = seeded(1, 3, 4, 5, seed=1)
    try:
        up = ops.conv_transpose2d(x, factors, output_padding=more, **options)
    except ArgumentError:
        return
    y = seeded(*up.shape, seed=2)
    down = F.conv2d(y, factors.to_dense().transpose(0, 1), **options)
    # Rows of output padding that the convolution has windows left for are none of x's.
    down = down[..., : x.shape[2], : x.shape[3]]
    torch.testing.assert_close((y * up).sum(), (down * x).sum(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("format", CONV_FORMATS)
def test_the_memory_format_of_the_input_is_kept(format: str, axes: int) -> None:
    factors = random_factors(format, (4, 4, *(2, 3, 2)[:axes]), dtype=torch.float32)
    last = torch.channels_last if axes == 2 else torch.channels_last_3d
    for layout in (torch.contiguous_format, last):
        x = seeded(2, 4, *(5, 6, 4)[:axes], dtype=torch.float32).contiguous(memory_format=layout)
        for path in ops.conv_paths(factors, transposed=True):
            y = OURS[axes](x, factors, stride=2, path=path)
            assert y.is_contiguous(memory_format=layout), (path, layout)


def test_what_makes_no_sense_is_refused() -> None:
    f, x = random_factors("lowrank", (4, 3, 2, 2)), torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    with pytest.raises(ShapeError, match=r"must be \(B, 3, H, W\) or \(3, H, W\)"):
        ops.conv_transpose2d(x[0, 0], f)
    with pytest.raises(ShapeError, match="and so 2 channels; the kernel takes 3"):
        ops.conv_transpose2d(x[:, :2], f)
    with pytest.raises(ShapeError, match="kernel of a convolution is"):
        ops.conv_transpose1d(x, f)
    with pytest.raises(ArgumentError, match="output_padding=2 must be below the stride"):
        ops.conv_transpose2d(x, f, stride=2, output_padding=2)
    with pytest.raises(ArgumentError, match="path='fused' is unknown"):
        ops.conv_transpose2d(x, f, path="fused")
    with pytest.raises(UnsupportedError, match="a convolution runs on"):
        ops.conv_transpose2d(x, random_factors("tr", (4, 4)))
    with pytest.raises(ShapeError, match="bias"):
        ops.conv_transpose2d(x, f, torch.zeros(3, dtype=torch.float64))
