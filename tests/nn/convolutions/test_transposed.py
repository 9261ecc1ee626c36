"""Factored transposed convolutions compute what torch's compute, every option included."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError
from tensorlrf.nn import FactoredConvTranspose2d, factorize
from tensorlrf.nn.stock import to_dense_layer, to_stock_layer
from tensorlrf.ops import PathTable
from tests.draws import seeded
from tests.laws.stock import agree, check_every_path
from tests.nn.samples import TRANSPOSED, inputs_first, transposed_conv
from tests.ops.samples import FORMATS, random_factors, random_grouped
from tests.ops.test_conv_transpose import geometries

METHODS = ("svd", "tucker", "cp", "tt", "kron")


@pytest.mark.parametrize(("axes", "groups"), [(1, 1), (2, 1), (3, 1), (1, 2), (2, 3)])
@settings(max_examples=30, derandomize=True, deadline=None)
@given(data=st.data())
def test_agrees_with_the_dense_layer(axes: int, groups: int, data: st.DataObject) -> None:
    draw = data.draw
    kernel = [draw(st.integers(1, 3)) for _ in range(axes)]
    shape = (groups * draw(st.integers(1, 4)), draw(st.integers(2, 4)), *kernel)
    f = random_grouped(draw(st.sampled_from(FORMATS)), shape, groups)
    like = transposed_conv(f, bias=draw(st.booleans()), **draw(geometries(axes)))
    layer = TRANSPOSED[axes][1].from_factors(f, like)
    batch = draw(st.sampled_from([None, 1, 3]))
    x = seeded(*(() if batch is None else (batch,)), like.in_channels, *(4, 5, 3)[:axes], seed=2)
    try:
        want = like(x)
    except RuntimeError:  # nothing is left of it
        return
    for path in layer.paths:
        layer.path_table = PathTable.single(path)
        agree(layer(x), want)
    assert layer._rows(x) == want.numel() // like.out_channels
    sizes = [
        n + draw(st.integers(0, s - 1)) for n, s in zip(least(like, x), like.stride, strict=True)
    ]
    if min(sizes) > 0:
        agree(layer(x, sizes), like(x, sizes))
        agree(layer(x, [*want.shape[:-axes], *sizes]), like(x, sizes))


def least(like: Any, x: torch.Tensor) -> list[int]:
    """The sizes of the output without output padding."""
    axes = len(like.kernel_size)
    given = zip(
        x.shape[-axes:], like.kernel_size, like.stride, like.padding, like.dilation, strict=True
    )
    return [(n - 1) * s - 2 * p + d * (k - 1) + 1 for n, k, s, p, d in given]


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_at_its_full_rank_is_the_layer(method: str, groups: int, axes: int) -> None:
    make: Any = TRANSPOSED[axes][0]
    layer = make(4 * groups, 3 * groups, 2, stride=2, groups=groups, dtype=torch.float64)
    x = seeded(2, 4 * groups, *(4, 3, 2)[:axes], seed=5)
    full = {"cp": 3 * 4 * 2 ** (axes - 1)}.get(method)
    small = factorize(layer, method, full) if full else factorize(layer, method, error=1e-9)
    bound = 0.05 if method == "cp" else 1e-7  # CP is a search, which need not end
    assert (small(x) - layer(x)).norm() <= bound * layer(x).norm()
    assert small.weight.shape == layer.weight.shape
    assert (small.weight - layer.weight).norm() <= bound * layer.weight.norm()


@pytest.mark.parametrize("modes", [(0,), (1,), (0, 1)])
def test_channels_are_mixed_before_behind_or_on_both_sides(modes: tuple[int, ...]) -> None:
    """Tucker on one mode is a pointwise convolution and a transposed one of fewer channels."""
    layer = nn.ConvTranspose2d(6, 5, 3, stride=2)
    small = factorize(layer.double(), "tucker", (2,) * len(modes), modes=modes)
    kinds = [type(one).__name__ for one in to_stock_layer(small, "chain").modules()]
    before, behind = 1 in modes, 0 in modes
    assert kinds[1:] == ["Conv2d"] * before + ["ConvTranspose2d"] + ["Conv2d"] * behind


@pytest.mark.parametrize(("axes", "groups"), [(1, 1), (2, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize("format", FORMATS)
def test_it_can_be_told_in_layers_of_torch(format: str, axes: int, groups: int) -> None:
    f = random_grouped(format, (4 * groups, 3, *(3, 2, 2)[:axes]), groups)
    like = transposed_conv(f, stride=2, padding=1, output_padding=1, dilation=2)
    layer = TRANSPOSED[axes][1].from_factors(f, like)
    check_every_path(layer, seeded(2, 3 * groups, *(4, 5, 3)[:axes], seed=2))


def test_attributes_are_those_of_the_torch_layer() -> None:
    f = random_grouped("cp", (6, 2, 3, 3), 2)
    like = transposed_conv(f, stride=2, dilation=2, padding=1, output_padding=1)
    layer = FactoredConvTranspose2d.from_factors(f, like)
    for name in (
        *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation"),
        *("output_padding", "groups", "padding_mode", "training"),
    ):
        assert getattr(layer, name) == getattr(like, name), name
    assert layer.weight.shape == like.weight.shape
    agree(layer.weight.clone(), inputs_first(f.to_dense(), 2))
    assert layer.stands_for == "ConvTranspose2d"
    shown = re.sub(r"^ConvTranspose2d\(|\)$", "", repr(like))
    assert repr(layer).startswith(f"FactoredConvTranspose2d({shown}, bias=True, ")
    dense: Any = to_dense_layer(layer)
    assert repr(dense) == repr(like)
    agree(dense.weight, like.weight)


def test_what_does_not_fit_is_refused() -> None:
    like = nn.ConvTranspose2d(3, 4, 3, groups=1).double()
    with pytest.raises(ShapeError, match=r"like takes \(4, 3, 3, 3\).*like.weight.transpose"):
        FactoredConvTranspose2d.from_factors(random_factors("lowrank", (3, 4, 3, 3)), like)
    with pytest.raises(ArgumentError, match="factors have 2 groups, like has groups=1"):
        FactoredConvTranspose2d.from_factors(random_grouped("lowrank", (4, 3, 3, 3), 2), like)
    with pytest.raises(UnsupportedError, match=r"pass a torch.nn.ConvTranspose2d"):
        FactoredConvTranspose2d.from_factors(random_factors("cp", (4, 3, 3, 3)), nn.Conv2d(3, 4, 3))
    with pytest.raises(UnsupportedError, match="depthwise"):
        factorize(nn.ConvTranspose2d(4, 4, 3, groups=4), "svd", 1)
    layer = factorize(nn.ConvTranspose2d(3, 4, 3, stride=2), "svd", 2)
    for size in ([7, 9], [9], [1, 2, 3, 9, 9, 9]):
        with pytest.raises(ArgumentError, match=r"from \(9, 9\) to \(10, 10\)"):
            layer(torch.rand(1, 3, 4, 4), size)


@pytest.mark.parametrize("groups", [1, 2])
def test_frozen_it_keeps_the_weight_as_torch_has_it(groups: int) -> None:
    f = random_grouped("tucker", (4, 3, 3, 3), groups)
    layer = FactoredConvTranspose2d.from_factors(f, like := transposed_conv(f, stride=2)).eval()
    layer.requires_grad_(False).path_table = PathTable.single("dense")
    x = seeded(1, 3 * groups, 4, 4, seed=8)
    layer.freeze()
    assert layer._dense_weight().shape == like.weight.shape
    agree(layer(x), like(x))
