"""ops.conv1d, conv2d and conv3d by every path against torch's own, with and without groups."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tensorlrf import ops
from tensorlrf.errors import ArgumentError, ShapeError, TensorlrfError, UnsupportedError
from tensorlrf.factors import Grouped, LowRank
from tests.draws import seeded
from tests.ops.samples import CONV_FORMATS, assert_rounding, random_factors, random_grouped

CONV: dict[int, Any] = {1: ops.conv1d, 2: ops.conv2d, 3: ops.conv3d}
TORCH = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CASES = [(2, 1), (1, 1), (3, 1), (1, 2), (2, 2), (2, 3), (3, 2)]
"""Axes, and groups."""


def torch_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: Any = 0, **options: Any
) -> Tensor:
    """torch's convolution; pairs of zeros are put ahead of it."""
    if isinstance(padding, tuple) and isinstance(padding[0], tuple):
        x, padding = F.pad(x, [n for side in reversed(padding) for n in side]), 0
    with warnings.catch_warnings():
        # torch copies its input to pad an even kernel, and warns that it does
        warnings.filterwarnings("ignore", message="Using padding='same' with even kernel lengths")
        return TORCH[weight.ndim - 2](x, weight, bias, padding=padding, **options)


@st.composite
def geometries(draw: st.DrawFn, axes: int) -> dict[str, Any]:
    def ints(low: int, high: int) -> st.SearchStrategy[Any]:
        one = st.integers(low, high)
        return st.one_of(one, st.tuples(*[one] * axes))

    zeros = st.integers(0, 2)
    sides = st.tuples(*[st.tuples(zeros, zeros)] * axes)
    padding = draw(st.one_of(st.sampled_from(["same", "valid"]), ints(0, 3), sides))
    return {
        "stride": 1 if padding == "same" else draw(ints(1, 3)),
        "padding": padding,
        "dilation": draw(ints(1, 2)),
    }


@pytest.mark.parametrize(("axes", "groups"), CASES)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_every_path_is_the_dense_convolution_and_costs_what_is_counted(
    axes: int, groups: int, data: st.DataObject
) -> None:
    draw = data.draw
    kernel = [draw(st.integers(1, 4 if axes == 2 else 3)) for _ in range(axes)]
    shape = (groups * draw(st.integers(1, 5)), draw(st.integers(1, 5)), *kernel)
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))
    format, rank = draw(st.sampled_from(CONV_FORMATS)), draw(st.integers(1, 4))
    factors = random_grouped(format, shape, groups, rank=rank, dtype=dtype)
    batch = draw(st.sampled_from([None, 0, 1, 2]))
    size = [draw(st.integers(1, 9)) for _ in range(axes)]
    x = seeded(*(() if batch is None else (batch,)), groups * shape[1], *size, seed=20, dtype=dtype)
    if draw(st.booleans()) and batch is not None:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    bias = seeded(shape[0], seed=21, dtype=dtype) if draw(st.booleans()) else None
    options = draw(geometries(axes))

    def run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch_conv(x, weight, bias, groups=groups, **options)

    try:
        run(x, factors.to_dense(), bias)
    except RuntimeError:  # the input is smaller than the kernel
        with pytest.raises(ArgumentError, match="smaller than"):
            CONV[axes](x, factors, bias, **options)
        return
    positions = ops.Positions.of((1 if batch is None else batch, *size), kernel, **options)
    assert_rounding(CONV[axes](x, factors, bias, **options), factors, x, bias, run)
    for path in ops.conv_paths(factors):
        with FlopCounterMode(display=False) as counter:
            y = CONV[axes](x, factors, bias, **options, path=path)
        assert_rounding(y, factors, x, bias, run)
        assert ops.conv_cost(factors, path, positions).flops == counter.get_total_flops()


@pytest.mark.parametrize(("axes", "groups"), [case for case in CASES if case[0] > 1])
@pytest.mark.parametrize("format", CONV_FORMATS)
def test_the_memory_format_of_the_input_is_kept(format: str, axes: int, groups: int) -> None:
    # In float64 torch itself keeps channels_last_3d nowhere.
    dtype = torch.float32
    shape = (4 * groups, 4, *(2, 3, 2)[:axes])
    factors = random_grouped(format, shape, groups, dtype=dtype)
    bias = seeded(4 * groups, dtype=dtype)
    last = torch.channels_last if axes == 2 else torch.channels_last_3d
    for layout in (torch.contiguous_format, last):
        x = seeded(2, 4 * groups, *(5, 6, 4)[:axes], dtype=dtype).contiguous(memory_format=layout)
        for path in ops.conv_paths(factors):
            for padding in (1, "same"):
                y = CONV[axes](x, factors, bias, padding=padding, path=path)
                assert y.is_contiguous(memory_format=layout), (path, layout)


def test_costs_of_the_paths_of_a_cp_convolution_by_hand() -> None:
    f = random_factors("cp", (8, 4, 3, 3), dtype=torch.float32)
    at = ops.Positions.of((1, 10, 10), (3, 3))
    assert at == (100, 80, 64)
    flops = {path: ops.conv2d_cost(f, path, at).flops for path in ops.conv2d_paths(f)}
    rebuild = 8 * 2 * 36
    assert flops == {
        "dense": 2 * (rebuild + 64 * 8 * 36),
        "chain": 2 * (100 * 4 * 2 + 80 * 2 * 3 + 64 * 2 * 3 + 64 * 2 * 8),
        "fold": 2 * (80 * 4 * 2 * 3 + 64 * 2 * 8 * 3),
        "fold_depthwise": 2 * (100 * 4 * 2 + 64 * 2 * 9 + 64 * 2 * 8),
    }


def test_costs_of_a_grouped_convolution_by_hand() -> None:
    f = random_grouped("lowrank", (24, 4, 3, 3), 3, dtype=torch.float32)
    at = ops.Positions.of((1, 10, 10), (3, 3), stride=2)
    assert at == (100, 40, 16)
    chain = ops.conv2d_cost(f, "chain", at)
    assert chain.flops == 2 * 3 * (16 * 2 * 36 + 16 * 2 * 8)
    read, inner, written = 100 * 12, 16 * 6, 16 * 24
    assert chain.bytes == 4 * (read + 3 * 2 * 36 + inner + inner + 3 * 16 + written)
    # Two channels of a group fill an eighth of a tile of sixteen, eight the half.
    assert [step.padding for step in chain.steps] == [8.0, 2.0]
    dense = ops.conv2d_cost(f, "dense", at, rebuild=False)
    assert (dense.flops, dense.launches) == (2 * 16 * 24 * 36, 1)


def test_compiles_whole_with_factors_as_arguments() -> None:
    torch._dynamo.reset()
    some = [
        random_grouped(format, (4 * groups, 3, *(2, 3, 2)[:axes]), groups)
        for axes, groups, format in (
            *((2, 1, "lowrank"), (2, 1, "cp"), (2, 1, "tucker"), (1, 1, "cp")),
            *((3, 1, "tucker2"), (2, 2, "lowrank"), (1, 3, "cp")),
        )
    ]

    def run(inputs: list[Tensor], factors: list[Any]) -> list[Tensor]:
        return [
            CONV[x.ndim - 2](x, f, padding="same") for x, f in zip(inputs, factors, strict=True)
        ]

    compiled = torch.compile(run, fullgraph=True, backend="eager")
    for batch in (2, 3):
        inputs = [
            seeded(batch, f.shape[1] * getattr(f, "groups", 1), *(6, 5, 4)[: len(f.shape) - 2])
            for f in some
        ]
        for ours, eager in zip(compiled(inputs, some), run(inputs, some), strict=True):
            torch.testing.assert_close(ours, eager, rtol=1e-12, atol=1e-12)


KERNEL = LowRank(torch.zeros(8, 2), torch.zeros(2, 36), (8, 4, 3, 3))
SIGNAL = LowRank(torch.zeros(8, 2), torch.zeros(2, 12), (8, 4, 3))
GROUPED = Grouped.stack([SIGNAL, SIGNAL])
IMAGE, ROW = torch.zeros(1, 4, 9, 9), torch.zeros(1, 4, 9)
SIDES = r"\(before, after\), for each of the 1 axes"


@pytest.mark.parametrize(
    ("x", "factors", "options", "error", "words"),
    [
        (torch.zeros(1, 5, 9, 9), KERNEL, {}, ShapeError, "5 channels; the kernel takes 4.*groups"),
        (ROW, GROUPED, {}, ShapeError, r"4 channels; the kernel takes 8 \(2 groups of 4\)"),
        (torch.zeros(4, 9), KERNEL, {}, ShapeError, r"\(B, 4, H, W\) or \(4, H, W\)"),
        (torch.zeros(9), SIGNAL, {}, ShapeError, r"\(B, 4, L\) or \(4, L\)"),
        (IMAGE, KERNEL, {"bias": torch.zeros(4)}, ShapeError, r"bias has shape \(4,\)"),
        (torch.cat([ROW, ROW], 1), GROUPED, {"bias": torch.zeros(8)}, ShapeError, r"be \(16,\)"),
        (torch.zeros(1, 4, 2, 9), KERNEL, {}, ArgumentError, "smaller than the 3 x 3 kernel"),
        (torch.zeros(1, 4, 2), SIGNAL, {}, ArgumentError, "smaller than the 3 kernel"),
        (IMAGE, KERNEL, {"path": "fold"}, ArgumentError, "'fold' is unknown; .* dense, chain"),
        (IMAGE, KERNEL, {"stride": 0}, ArgumentError, "stride=0 must hold ints of at least 1"),
        (IMAGE, KERNEL, {"dilation": (1, 2, 3)}, ArgumentError, "must be an int or two ints"),
        (ROW, SIGNAL, {"stride": (1, 2)}, ArgumentError, "must be an int, alone or in a tuple"),
        (IMAGE, KERNEL, {"padding": -1}, ArgumentError, "padding=-1"),
        (IMAGE, KERNEL, {"padding": "full"}, ArgumentError, "is unknown; choose 'same', 'valid'"),
        (IMAGE, KERNEL, {"stride": 2, "padding": "same"}, ArgumentError, r"stride 1.*\(2, 2\)"),
        *(
            (ROW, SIGNAL, {"padding": padding}, ArgumentError, SIDES)
            for padding in (((1, 2), (0, 0)), ((1, -1),), ((1, 2, 3),), ((1.0, 2),), ([1],))
        ),
        (IMAGE, LowRank(torch.zeros(8, 2), torch.zeros(2, 4)), {}, ShapeError, r"els, kh, kw\)"),
        (torch.zeros(1, 4, 9, 9, 9), SIGNAL, {}, ShapeError, r"in_channels, kd, kh, kw\)"),
        (IMAGE, torch.zeros(8, 4, 3, 3), {}, UnsupportedError, "Tensor"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(
    x: Tensor, factors: Any, options: dict[str, Any], error: type[TensorlrfError], words: str
) -> None:
    axes = max(1, x.ndim - 2) if x.ndim != 2 else 2
    with pytest.raises(error, match=words):
        CONV[axes](x, factors, **options)


def test_kernels_that_no_convolution_has() -> None:
    with pytest.raises(ShapeError, match=r", k\) or .*kh, kw\) or .*kd, kh, kw\)"):
        ops.conv_paths(LowRank(torch.zeros(8, 2), torch.zeros(2, 16), (8, 2, 2, 2, 2, 1)))
    with pytest.raises(UnsupportedError, match=r"factors is a Grouped, on which no linear layer"):
        ops.linear(ROW, Grouped.stack([LowRank(torch.zeros(8, 2), torch.zeros(2, 9))]))
    with pytest.raises(UnsupportedError, match=r"operand is a Grouped; .*to_dense"):
        ops.contract("oik->o", GROUPED)
