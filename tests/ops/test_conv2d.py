"""ops.conv2d by every path against the dense convolution."""

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
from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError
from tensorlrf.factors import LowRank
from tests.draws import seeded
from tests.ops.samples import CONV_FORMATS, assert_rounding, sample

channels = st.integers(1, 5)
kernels = st.tuples(st.integers(1, 4), st.integers(1, 4))
formats = st.sampled_from(CONV_FORMATS)


@st.composite
def geometries(draw: st.DrawFn) -> dict[str, Any]:
    dilation = draw(st.one_of(st.integers(1, 2), st.tuples(st.integers(1, 2), st.integers(1, 3))))
    if draw(st.booleans()):
        padding = draw(st.sampled_from(["same", "valid"]))
    else:
        padding = draw(
            st.one_of(st.integers(0, 2), st.tuples(st.integers(0, 2), st.integers(0, 3)))
        )
    stride = 1
    if padding != "same":
        stride = draw(st.one_of(st.integers(1, 3), st.tuples(st.integers(1, 2), st.integers(1, 3))))
    return {"stride": stride, "padding": padding, "dilation": dilation}


def dense_conv(x: Tensor, weight: Tensor, bias: Tensor | None, **options: Any) -> Tensor:
    with warnings.catch_warnings():
        # torch copies its input to pad an even kernel, and warns that it does
        warnings.filterwarnings("ignore", message="Using padding='same' with even kernel lengths")
        return F.conv2d(x, weight, bias, **options)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    formats,
    channels,
    channels,
    kernels,
    st.integers(1, 4),
    geometries(),
    st.sampled_from([None, 0, 1, 2]),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.booleans(),
    st.booleans(),
    st.sampled_from([torch.float64, torch.float32]),
)
def test_every_path_is_the_dense_convolution(
    format: str,
    out: int,
    inp: int,
    kernel: tuple[int, int],
    rank: int,
    options: dict[str, Any],
    batch: int | None,
    size: tuple[int, int],
    channels_last: bool,
    with_bias: bool,
    dtype: torch.dtype,
) -> None:
    factors = sample(format, (out, inp, *kernel), rank, dtype)
    lead = () if batch is None else (batch,)
    x = seeded(*lead, inp, *size, seed=20, dtype=dtype)
    if channels_last and batch is not None:
        x = x.contiguous(memory_format=torch.channels_last)
    bias = seeded(out, seed=21, dtype=dtype) if with_bias else None
    try:
        dense_conv(x, factors.to_dense(), bias, **options)
    except RuntimeError:  # the input is smaller than the kernel
        with pytest.raises(ArgumentError, match="smaller than"):
            ops.conv2d(x, factors, bias, **options)
        return
    for path in (None, *ops.conv2d_paths(factors)):
        y = ops.conv2d(x, factors, bias, **options, path=path)
        assert_rounding(y, factors, x, bias, lambda *given: dense_conv(*given, **options))


@pytest.mark.parametrize("format", CONV_FORMATS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("padding", [1, "same"])
def test_the_memory_format_of_the_input_is_kept(
    format: str, layout: torch.memory_format, padding: Any
) -> None:
    factors = sample(format, (5, 4, 2, 3), 2)
    x = seeded(2, 4, 6, 7).contiguous(memory_format=layout)
    for path in ops.conv2d_paths(factors):
        y = ops.conv2d(x, factors, seeded(5), padding=padding, path=path)
        assert y.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("format", CONV_FORMATS)
def test_gradients_reach_input_bias_and_every_factor(format: str) -> None:
    factors = sample(format, (3, 2, 2, 3), 2)
    names = list(factors.tensors())
    leaves = [seeded(1, 2, 4, 5, seed=20), seeded(3, seed=21), *factors.tensors().values()]
    for path in ops.conv2d_paths(factors):

        def run(x, bias, *tensors, path=path):
            parts = dict(zip(names, tensors, strict=True))
            f = type(factors).from_tensors(parts, factors.meta())
            return ops.conv2d(x, f, bias, (2, 1), (1, 0), path=path)

        assert torch.autograd.gradcheck(run, [t.requires_grad_() for t in leaves])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(formats, channels, channels, kernels, st.integers(1, 4), geometries(), st.integers(1, 2))
def test_counted_flops_are_those_of_torch(
    format: str,
    out: int,
    inp: int,
    kernel: tuple[int, int],
    rank: int,
    options: dict[str, Any],
    batch: int,
) -> None:
    factors = sample(format, (out, inp, *kernel), rank)
    size = (batch, 11, 12)
    positions = ops.Positions.of(size, kernel, **options)
    for path in ops.conv2d_paths(factors):
        with FlopCounterMode(display=False) as counter:
            ops.conv2d(seeded(batch, inp, *size[1:]), factors, **options, path=path)
        assert ops.conv2d_cost(factors, path, positions).flops == counter.get_total_flops()


def test_costs_of_the_paths_of_a_cp_convolution_by_hand() -> None:
    f = sample("cp", (8, 4, 3, 3), 2, torch.float32)
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


@pytest.mark.parametrize(
    ("format", "path"), [("lowrank", "chain"), ("cp", None), ("cp", "fold"), ("tucker4", "dense")]
)
def test_compiles_whole(format: str, path: str | None) -> None:
    torch._dynamo.reset()
    factors = sample(format, (4, 3, 2, 3), 2)
    run = torch.compile(
        lambda x, f: ops.conv2d(x, f, padding="same", path=path),
        fullgraph=True,
        backend="eager",
        dynamic=True,
    )
    for batch in (2, 3):
        x = seeded(batch, 3, 6, 5).contiguous(memory_format=torch.channels_last)
        expected = ops.conv2d(x, factors, padding="same", path=path)
        torch.testing.assert_close(run(x, factors), expected, rtol=1e-12, atol=1e-12)


def test_wrong_arguments_are_named() -> None:
    f = LowRank(torch.zeros(8, 2), torch.zeros(2, 36), (8, 4, 3, 3))
    x = torch.zeros(1, 4, 9, 9)
    with pytest.raises(ShapeError, match=r"5 channels; the kernel takes 4.*groups"):
        ops.conv2d(torch.zeros(1, 5, 9, 9), f)
    with pytest.raises(ShapeError, match=r"\(B, 4, H, W\) or \(4, H, W\)"):
        ops.conv2d(torch.zeros(4, 9), f)
    with pytest.raises(ShapeError, match=r"bias has shape \(4,\)"):
        ops.conv2d(x, f, torch.zeros(4))
    with pytest.raises(ArgumentError, match="smaller than the 3 x 3 kernel"):
        ops.conv2d(torch.zeros(1, 4, 2, 9), f)
    with pytest.raises(ArgumentError, match="path='fold' is unknown; choose one of dense, chain"):
        ops.conv2d(x, f, path="fold")
    with pytest.raises(ArgumentError, match="stride=0 must hold ints of at least 1"):
        ops.conv2d(x, f, stride=0)
    with pytest.raises(ArgumentError, match=r"dilation=\(1, 2, 3\) must be an int or two ints"):
        ops.conv2d(x, f, dilation=(1, 2, 3))
    with pytest.raises(ArgumentError, match="padding=-1"):
        ops.conv2d(x, f, padding=-1)
    with pytest.raises(ArgumentError, match="padding='full' is unknown; choose 'same', 'valid'"):
        ops.conv2d(x, f, padding="full")
    with pytest.raises(ArgumentError, match=r"padding='same' needs stride 1.*\(2, 2\)"):
        ops.conv2d(x, f, stride=2, padding="same")
    with pytest.raises(ShapeError, match=r"\(out_channels, in_channels, kh, kw\)"):
        ops.conv2d(x, LowRank(torch.zeros(8, 2), torch.zeros(2, 4)))
    with pytest.raises(UnsupportedError, match="Tensor"):
        ops.conv2d(x, torch.zeros(8, 4, 3, 3))
