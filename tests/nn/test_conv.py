"""Factored convolutions compute what torch's compute with their kernels, every option included."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError
from tensorlrf.factors import Grouped, LowRank
from tensorlrf.nn import (
    FactoredConv1d,
    FactoredConv2d,
    FactoredConv3d,
    FactoredConvTranspose2d,
    FactoredLinear,
    factored_type,
)
from tensorlrf.ops import PathTable
from tests.nn.samples import (
    CONVOLUTIONS,
    KINDS,
    assert_as_dense,
    dense_conv,
    factored,
    input_of,
    of_kind,
)
from tests.ops.samples import FORMATS, random_factors, random_grouped

CASES = [(2, 1), (1, 1), (3, 1), (1, 2), (2, 2), (2, 3), (3, 2)]
"""Axes, and groups."""
CONVS = [kind for kind in KINDS if kind != "linear"]


@st.composite
def conv_options(draw: st.DrawFn, axes: int) -> dict[str, Any]:
    """Options of a torch convolution that an input of 6 in every axis can bear."""

    def ints(low: int, high: int) -> st.SearchStrategy[Any]:
        one = st.integers(low, high)
        return st.one_of(one, st.tuples(*[one] * axes))

    stride = draw(ints(1, 3))
    paddings = [ints(0, 2), st.just("valid")]
    if stride in (1, (1,) * axes):
        paddings.append(st.just("same"))
    return {
        "stride": stride,
        "padding": draw(st.one_of(paddings)),
        "dilation": draw(ints(1, 2)),
        "padding_mode": draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
        "bias": draw(st.booleans()),
    }


@pytest.mark.parametrize(("axes", "groups"), CASES)
@settings(max_examples=30, derandomize=True, deadline=None)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
def test_agrees_with_the_dense_layer(axes: int, groups: int, data: st.DataObject) -> None:
    draw = data.draw
    inputs = draw(st.integers(1 if groups == 1 else 2, 4))  # one a group is depthwise
    kernel = [draw(st.integers(1, 3)) for _ in range(axes)]
    shape = (groups * draw(st.integers(1, 4)), inputs, *kernel)
    f = random_grouped(draw(st.sampled_from(FORMATS)), shape, groups)
    like = dense_conv(f, **draw(conv_options(axes)))
    layer = factored(f, like)
    batch = draw(st.sampled_from([None, 0, 1, 3]))
    x = torch.randn(
        *(() if batch is None else (batch,)),
        like.in_channels,
        *(6 + draw(st.integers(0, 3)) for _ in range(axes)),
        dtype=torch.float64,
        generator=torch.Generator(),
    )
    if draw(st.booleans()) and batch is not None:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    for path in layer.paths:
        layer.path_table = PathTable.single(path)
        assert_as_dense(layer(x), f, like, x)
    assert layer._rows(x) == like(x).numel() // like.out_channels


@pytest.mark.parametrize("kind", CONVS)
def test_attributes_are_those_of_the_torch_layer(kind: str) -> None:
    f, like = of_kind("cp", kind, stride=2, dilation=2, padding_mode="circular")
    layer = factored(f, like)
    for name in (
        *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation"),
        *("groups", "padding_mode", "training"),
    ):
        assert getattr(layer, name) == getattr(like, name), name
    assert layer.weight.shape == like.weight.shape
    assert layer.stands_for == type(like).__name__
    assert sum(p.numel() for p in layer.parameters()) == f.n_params + f.shape[0]
    shown = re.sub(r".*Conv\dd\(|\)$", "", repr(like)).replace(", padding_mode=circular", "")
    assert repr(layer).startswith(f"Factored{type(like).__name__}({shown}, padding_mode=circular")


def test_the_format_of_groups_is_told() -> None:
    layer = factored(*of_kind("lowrank", "grouped"), "chain")
    assert repr(layer) == (
        "FactoredConv2d(4, 6, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=2, "
        "bias=True, format=grouped lowrank, rank=2, share=77.8%, path=chain)"
    )


@pytest.mark.parametrize("kind", ["conv", "grouped", "conv3d"])
@pytest.mark.parametrize("format", FORMATS)
def test_the_memory_format_is_kept(format: str, kind: str) -> None:
    # In float64 torch itself keeps channels_last_3d nowhere.
    f, like = of_kind(format, kind, dtype=torch.float32)
    layout = torch.channels_last_3d if kind == "conv3d" else torch.channels_last
    x = input_of(kind, torch.float32).contiguous(memory_format=layout)
    for layer in (
        factored(f, like).to(memory_format=layout),  # type: ignore[call-overload]
        factored(f, like.to(memory_format=layout)),  # type: ignore[call-overload]
    ):
        for p in layer.parameters():
            expected = layout if p.ndim == x.ndim else torch.contiguous_format
            assert p.is_contiguous(memory_format=expected)
        for path in layer.paths:
            layer.path_table = PathTable.single(path)
            y = layer(x)
            assert y.is_contiguous(memory_format=layout)
            assert_as_dense(y, f, like, x)


@pytest.mark.parametrize(("axes", "groups"), [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("padding_mode", ["zeros", "replicate"])
def test_the_two_sides_may_differ(axes: int, groups: int, padding_mode: str) -> None:
    f = random_grouped("tucker", (4, 2, *(3,) * axes), groups)
    sides = ((1, 2), (2, 0), (1, 1))[:axes]
    kind: Any = CONVOLUTIONS[axes][1]
    layer = kind(f, padding=sides, stride=2, padding_mode=padding_mode)
    assert layer.padding == sides
    assert f"padding={sides!r}" in repr(layer)
    like = dense_conv(f, bias=False, stride=2)
    x = torch.randn(2, 2 * groups, *(5, 6, 7)[:axes], dtype=torch.float64)
    ahead = [n for side in reversed(sides) for n in side]
    padded = F.pad(x, ahead, "constant" if padding_mode == "zeros" else padding_mode)
    for path in layer.paths:
        layer.path_table = PathTable.single(path)
        assert_as_dense(layer(x), f, like, padded)
    assert layer._rows(x) == like(padded).numel() // 4
    assert kind(f, padding=((1, 1),) * axes).padding == (1,) * axes
    assert kind(f, padding="same").padding == "same"


@pytest.mark.parametrize("kind", ["linear", "conv3d"])
def test_four_dimensions_are_no_image_unless_the_layer_takes_images(kind: str) -> None:
    f, like = of_kind("lowrank", kind)
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64) if kind == "linear" else input_of(kind)[0]
    x = x.contiguous(memory_format=torch.channels_last)
    layer = factored(f, like, "dense").eval()
    with torch.no_grad():
        assert_as_dense(layer(x), f, like, x)


def test_groups_of_factors_and_layer_must_agree() -> None:
    whole = random_factors("lowrank", (6, 2, 3, 3))
    conv = nn.Conv2d(4, 6, 3, groups=2, dtype=torch.float64)
    with pytest.raises(ArgumentError, match=r"factors have 1 group, like has groups=2; .*stack"):
        FactoredConv2d.from_factors(whole, conv)
    three = random_grouped("lowrank", (6, 2, 3, 3), 3)
    with pytest.raises(ArgumentError, match=r"factors have 3 groups, like has groups=2"):
        FactoredConv2d.from_factors(three, conv)
    with pytest.raises(ArgumentError, match=r"factors have 3 groups, like has groups=1"):
        FactoredConv2d.from_factors(three, nn.Conv2d(2, 6, 3))
    one = Grouped.stack([random_factors("lowrank", (6, 2, 3, 3))])
    assert FactoredConv2d.from_factors(one, nn.Conv2d(2, 6, 3)).groups == 1
    with pytest.raises(
        UnsupportedError, match=r"factors is a Grouped, on which no linear layer runs"
    ):
        FactoredLinear(Grouped.stack([LowRank(torch.ones(2, 1), torch.ones(1, 3))]))


@pytest.mark.parametrize(
    ("kind", "layer"),
    [(FactoredConv1d, nn.Conv2d(4, 6, 3)), (FactoredConv3d, nn.Conv1d(4, 6, 3))],
)
def test_a_layer_of_another_number_of_axes(kind: Any, layer: nn.Module) -> None:
    with pytest.raises(UnsupportedError, match=f"pass a torch.nn.{kind.__name__[8:]}"):
        kind.from_factors(random_factors("cp", (6, 4, 3)), layer)
    with pytest.raises(ShapeError, match="kernel of a convolution is"):
        kind(random_factors("cp", (6, 4)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "stride=0"),
        ({"stride": (1, 2)}, r"stride=\(1, 2\) must be an int, alone or in a tuple"),
        ({"dilation": (0,)}, r"dilation=\(0,\)"),
        ({"padding": -1}, "padding=-1"),
        ({"padding": ((1, 2), (1, 2))}, r"padding=.* \(before, after\), for each of the 1 axes"),
        ({"padding": ((1, -2),)}, r"padding=\(\(1, -2\),\) must hold two ints of at least 0"),
        ({"padding": "full"}, "padding='full' is unknown; choose 'same', 'valid'"),
        ({"padding": "same", "stride": 2}, "padding='same' needs stride 1"),
        ({"padding_mode": "mirror"}, "padding_mode='mirror' is unknown; choose one of zeros"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        FactoredConv1d(random_factors("cp", (3, 3, 3)), **options)


def test_the_type_that_can_stand_in() -> None:
    assert factored_type(nn.Linear(3, 4)) is FactoredLinear
    assert factored_type(nn.Conv1d(4, 6, 3)) is FactoredConv1d
    assert factored_type(nn.Conv2d(4, 6, 3, groups=2)) is FactoredConv2d
    assert factored_type(nn.Conv3d(4, 6, 3, device="meta")) is FactoredConv3d
    assert factored_type(nn.ConvTranspose2d(4, 6, 3, groups=2)) is FactoredConvTranspose2d
    for other in (
        nn.Conv2d(4, 4, 3, groups=4),
        nn.ConvTranspose1d(4, 4, 3, groups=4),
        nn.ReLU(),
        FactoredLinear(random_factors("cp", (3, 4))),
    ):
        assert factored_type(other) is None
