"""Convolutions in one, two and three axes, with and without groups, against torch's own."""

from __future__ import annotations

import math
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
from tensorlrf.factors import Factors, Grouped, LowRank
from tensorlrf.ops._profile import CPU, H200
from tests.draws import seeded
from tests.ops.samples import sample

CONV = {1: ops.conv1d, 2: ops.conv2d, 3: ops.conv3d}
TORCH = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
FORMATS = (
    *("lowrank", "cp", "tucker2", "tucker_out", "tucker_in", "tucker_all", "tucker_kernel"),
    *("kron", "tt"),
)
# Two axes without groups are those of test_conv2d.py.
CASES = [(1, 1), (3, 1), (1, 2), (2, 2), (2, 3), (3, 2)]


def kernel_factors(
    format: str,
    groups: int,
    shape: tuple[int, ...],
    rank: int = 2,
    dtype: torch.dtype = torch.float64,
) -> Factors:
    """Factors of a kernel whose groups have `shape`; a Grouped of different ones where g > 1."""
    name = {"tucker_all": "tucker4"}.get(format, format)
    if format.startswith("tucker") and len(shape) != 4:
        one = _tucker(format, shape, rank, dtype)
    else:
        one = sample(name, shape, rank, dtype)
    if groups == 1:
        return one
    return Grouped.stack([one.map(lambda t, k=k: t + 0.3 * k) for k in range(groups)])


def _tucker(format: str, shape: tuple[int, ...], rank: int, dtype: torch.dtype) -> Factors:
    from tensorlrf.factors import TuckerFactors

    order = len(shape)
    modes = {
        "tucker2": (0, 1),
        "tucker_out": (0,),
        "tucker_in": (1,),
        "tucker_all": tuple(range(order)),
        "tucker_kernel": tuple(range(2, order)),
    }[format]
    core = [min(rank, n) if k in modes else n for k, n in enumerate(shape)]
    factors = tuple(seeded(shape[k], core[k], seed=k, dtype=dtype) for k in modes)
    return TuckerFactors(seeded(*core, seed=9, dtype=dtype), factors, modes)


def torch_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, padding: Any = 0, **options: Any
) -> Tensor:
    """torch's convolution; pairs of zeros are put ahead of it."""
    axes = weight.ndim - 2
    if isinstance(padding, tuple) and padding and isinstance(padding[0], tuple):
        x, padding = F.pad(x, [n for side in reversed(padding) for n in side]), 0
    with warnings.catch_warnings():
        # torch copies its input to pad an even kernel, and warns that it does
        warnings.filterwarnings("ignore", message="Using padding='same' with even kernel lengths")
        return TORCH[axes](x, weight, bias, padding=padding, groups=groups, **options)


def assert_rounding(
    y: Tensor, f: Factors, x: Tensor, bias: Tensor | None, groups: int, options: dict[str, Any]
) -> None:
    """As tests.ops.samples: n eps in units of the same sum over absolute values."""
    wide, bias64 = f.to(torch.float64), None if bias is None else bias.double()
    expected = torch_conv(x.double(), wide.to_dense(), bias64, groups, **options)
    absolute = torch_conv(
        x.double().abs(),
        wide.map(torch.abs).to_dense(),
        None if bias64 is None else bias64.abs(),
        groups,
        **options,
    )
    assert y.shape == expected.shape
    assert y.dtype == x.dtype
    n = math.prod(f.shape[1:]) + sum(max(t.shape) for t in f.tensors().values()) + 8
    bound = n * torch.finfo(x.dtype).eps * absolute
    assert bool(((y.double() - expected).abs() <= bound).all())


@st.composite
def geometries(draw: st.DrawFn, axes: int) -> dict[str, Any]:
    def ints(low: int, high: int) -> st.SearchStrategy[Any]:
        one = st.integers(low, high)
        return st.one_of(one, st.tuples(*[one] * axes))

    zeros = st.integers(0, 2)
    sides = st.tuples(*[st.tuples(zeros, zeros)] * axes)
    padding = draw(st.one_of(st.sampled_from(["same", "valid"]), ints(0, 2), sides))
    return {
        "stride": 1 if padding == "same" else draw(ints(1, 3)),
        "padding": padding,
        "dilation": draw(ints(1, 2)),
    }


@pytest.mark.parametrize(("axes", "groups"), CASES)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_every_path_is_the_dense_convolution(axes: int, groups: int, data: st.DataObject) -> None:
    draw = data.draw
    shape = (
        draw(st.integers(1, 4)),
        draw(st.integers(1, 4)),
        *(draw(st.integers(1, 3)) for _ in range(axes)),
    )
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))
    factors = kernel_factors(
        draw(st.sampled_from(FORMATS)), groups, shape, draw(st.integers(1, 3)), dtype
    )
    batch = draw(st.sampled_from([None, 0, 1, 2]))
    size = [draw(st.integers(1, 7)) for _ in range(axes)]
    x = seeded(*(() if batch is None else (batch,)), groups * shape[1], *size, seed=20, dtype=dtype)
    if draw(st.booleans()) and batch is not None:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    bias = seeded(groups * shape[0], seed=21, dtype=dtype) if draw(st.booleans()) else None
    options = draw(geometries(axes))
    try:
        torch_conv(x, factors.to_dense(), bias, groups, **options)
    except RuntimeError:  # the input is smaller than the kernel
        with pytest.raises(ArgumentError, match="smaller than"):
            CONV[axes](x, factors, bias, **options)
        return
    for path in (None, *ops.conv_paths(factors)):
        y = CONV[axes](x, factors, bias, **options, path=path)
        assert_rounding(y, factors, x, bias, groups, options)


@pytest.mark.parametrize(("axes", "groups"), CASES)
@pytest.mark.parametrize("format", FORMATS)
def test_gradients_reach_input_bias_and_every_factor(format: str, axes: int, groups: int) -> None:
    factors = kernel_factors(format, groups, (2, 2, *(2, 3, 2)[:axes]))
    names = list(factors.tensors())
    x = seeded(1, 2 * groups, *(3, 4, 3)[:axes], seed=20)
    leaves = [x, seeded(2 * groups, seed=21), *factors.tensors().values()]
    for path in ops.conv_paths(factors):

        def run(x, bias, *tensors, path=path):
            parts = dict(zip(names, tensors, strict=True))
            f = type(factors).from_tensors(parts, factors.meta())
            return CONV[axes](
                x, f, bias, (2, 1, 1)[:axes], ((0, 1), (1, 0), (1, 1))[:axes], path=path
            )

        given = [t.detach().clone().requires_grad_() for t in leaves]
        assert torch.autograd.gradcheck(run, given, fast_mode=True)


@pytest.mark.parametrize(("axes", "groups"), [(3, 1), (3, 2), (2, 2)])
@pytest.mark.parametrize("format", FORMATS)
def test_the_memory_format_of_the_input_is_kept(format: str, axes: int, groups: int) -> None:
    # In float64 torch itself keeps channels_last_3d nowhere.
    dtype = torch.float32
    factors = kernel_factors(format, groups, (4, 4, *(2, 3, 2)[:axes]), 2, dtype)
    last = torch.channels_last if axes == 2 else torch.channels_last_3d
    for layout in (torch.contiguous_format, last):
        x = seeded(2, 4 * groups, *(5, 6, 4)[:axes], dtype=dtype).contiguous(memory_format=layout)
        for path in ops.conv_paths(factors):
            y = CONV[axes](x, factors, seeded(4 * groups, dtype=dtype), padding=1, path=path)
            assert y.is_contiguous(memory_format=layout), (path, layout)


@pytest.mark.parametrize(("axes", "groups"), CASES)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_counted_flops_are_those_of_torch(axes: int, groups: int, data: st.DataObject) -> None:
    draw = data.draw
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 4)), *kernel)
    factors = kernel_factors(draw(st.sampled_from(FORMATS)), groups, shape, draw(st.integers(1, 3)))
    options = draw(geometries(axes))
    size = (draw(st.integers(1, 2)), *(7, 8, 9)[:axes])
    positions = ops.Positions.of(size, kernel, **options)
    assert len(positions) == axes + 1
    x = seeded(size[0], groups * shape[1], *size[1:])
    for path in ops.conv_paths(factors):
        with FlopCounterMode(display=False) as counter:
            CONV[axes](x, factors, **options, path=path)
        cost = ops.conv_cost(factors, path, positions)
        assert cost.flops == counter.get_total_flops()


def test_costs_of_a_grouped_convolution_by_hand() -> None:
    f = kernel_factors("lowrank", 3, (8, 4, 3, 3), 2, torch.float32)
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


@pytest.mark.parametrize("profile", [CPU, H200], ids=["cpu", "h200"])
@pytest.mark.parametrize(("axes", "groups"), CASES)
@pytest.mark.parametrize("format", ["lowrank", "cp", "tucker2"])
@pytest.mark.parametrize("rebuild", [False, True])
def test_the_table_by_cost_takes_the_least_predicted_time(
    profile: ops.DeviceProfile, format: str, axes: int, groups: int, rebuild: bool
) -> None:
    shape = (64, 64, *(3,) * axes)
    factors = kernel_factors(format, groups, shape, 16, torch.float32).to("meta")
    stride = (2, 1, 1)[:axes]
    table = ops.PathTable.from_cost(factors, stride=stride, profile=profile, rebuild=rebuild)
    for rows in (1, 4096, 2**20):
        times = {
            path: profile.seconds(
                ops.path_cost(factors, path, rows, stride=stride, rebuild=rebuild), torch.float32
            )
            for path in ops.paths_of(factors)
        }
        assert times[table.lookup(rows)] == min(times.values())
    floor = ops.floor_cost(factors, 4096, stride=stride)
    assert floor.flops == ops.path_cost(factors, "chain", 4096, stride=stride).flops
    elements = 2 * 4096 * groups * 64 + 4096 * groups * 64 + factors.n_params
    assert floor.bytes == 4 * elements


@pytest.mark.parametrize(("axes", "groups"), CASES)
@pytest.mark.parametrize("padding", [1, "same", "sides"])
def test_all_paths_are_timed(axes: int, groups: int, padding: Any) -> None:
    factors = kernel_factors("cp", groups, (4, 4, *(2, 3, 2)[:axes]))
    x = seeded(1, 4 * groups, *(6, 5, 4)[:axes])
    zeros = ((0, 1),) * axes if padding == "sides" else padding
    timings = ops.time_paths(factors, x, seeded(4 * groups), padding=zeros, seconds=1e-4)
    assert tuple(timings.samples) == ops.conv_paths(factors) == ("dense", "chain")


@pytest.mark.parametrize(
    ("axes", "groups", "format"), [(1, 1, "cp"), (3, 1, "tucker2"), (2, 2, "lowrank"), (1, 3, "cp")]
)
def test_compiles_whole(axes: int, groups: int, format: str) -> None:
    torch._dynamo.reset()
    factors = kernel_factors(format, groups, (4, 3, *(2, 3, 2)[:axes]))
    run = torch.compile(
        lambda x, f: CONV[axes](x, f, padding="same"),
        fullgraph=True,
        backend="eager",
    )
    for batch in (2, 3):
        x = seeded(batch, 3 * groups, *(6, 5, 4)[:axes])
        expected = CONV[axes](x, factors, padding="same")
        torch.testing.assert_close(run(x, factors), expected, rtol=1e-12, atol=1e-12)


def test_wrong_arguments_are_named() -> None:
    f = LowRank(torch.zeros(8, 2), torch.zeros(2, 12), (8, 4, 3))
    x = torch.zeros(1, 4, 9)
    grouped = Grouped.stack([f, f])
    with pytest.raises(ShapeError, match=r"5 channels; the kernel takes 4 .*groups"):
        ops.conv1d(torch.zeros(1, 5, 9), f)
    with pytest.raises(ShapeError, match=r"4 channels; the kernel takes 8 \(2 groups of 4\)"):
        ops.conv1d(x, grouped)
    with pytest.raises(ShapeError, match=r"\(B, 4, L\) or \(4, L\)"):
        ops.conv1d(torch.zeros(9), f)
    with pytest.raises(ShapeError, match=r"bias has shape \(8,\); it must be \(16,\)"):
        ops.conv1d(torch.zeros(1, 8, 9), grouped, torch.zeros(8))
    with pytest.raises(ArgumentError, match="smaller than the 3 kernel"):
        ops.conv1d(torch.zeros(1, 4, 2), f)
    with pytest.raises(ArgumentError, match="path='fold' is unknown; choose one of dense, chain"):
        ops.conv1d(x, f, path="fold")
    with pytest.raises(ArgumentError, match=r"stride=\(1, 2\) must be an int, alone or in a tuple"):
        ops.conv1d(x, f, stride=(1, 2))
    with pytest.raises(ArgumentError, match="padding='full' is unknown; choose 'same', 'valid'"):
        ops.conv1d(x, f, padding="full")
    for padding in (((1, 2), (0, 0)), ((1, -1),), ((1, 2, 3),), ((1.0, 2),), ([1],)):
        with pytest.raises(ArgumentError, match=r"\(before, after\), for each of the 1 axes"):
            ops.conv1d(x, f, padding=padding)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"padding='same' needs stride 1.*\(2,\)"):
        ops.conv1d(x, f, stride=2, padding="same")
    with pytest.raises(ShapeError, match=r"\(out_channels, in_channels, kd, kh, kw\)"):
        ops.conv3d(x, f)
    with pytest.raises(ShapeError, match=r", k\) or .*kh, kw\) or .*kd, kh, kw\)"):
        ops.conv_paths(LowRank(torch.zeros(8, 2), torch.zeros(2, 16), (8,) + (2,) * 4 + (1,)))
    with pytest.raises(UnsupportedError, match="Tensor"):
        ops.conv1d(x, torch.zeros(8, 4, 3))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match=r"factors is a Grouped, on which no linear layer"):
        ops.linear(x, Grouped.stack([LowRank(torch.zeros(8, 2), torch.zeros(2, 9))]))
    with pytest.raises(UnsupportedError, match=r"operand is a Grouped; .*to_dense"):
        ops.contract("oik->o", grouped)
