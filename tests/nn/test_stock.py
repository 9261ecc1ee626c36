"""A factored layer in layers of torch computes the same, on every path."""

from __future__ import annotations

import copy
import importlib
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tensorlrf.errors import ArgumentError
from tensorlrf.nn import (
    FactoredConv1d,
    FactoredConv2d,
    FactoredConv3d,
    FactoredHFConv1D,
    FactoredLinear,
)
from tensorlrf.nn.stock import to_dense_layer, to_stock_layer
from tests.draws import seeded
from tests.laws.stock import agree, check_every_path
from tests.nn.samples import factored
from tests.ops.samples import FORMATS, random_factors, random_grouped

CONVS: dict[int, Any] = {1: FactoredConv1d, 2: FactoredConv2d, 3: FactoredConv3d}


def test_a_chain_is_one_layer_a_factor() -> None:
    chain = to_stock_layer(FactoredLinear(random_factors("lowrank", (7, 5), 3), seeded(7, seed=9)))
    assert [(m.in_features, m.out_features) for m in chain.children()] == [(5, 3), (3, 7)]
    chain = to_stock_layer(FactoredLinear(random_factors("tucker_partial", (7, 5), 3)))
    assert len(list(chain.children())) == 2
    cp = FactoredConv2d(random_factors("cp", (7, 5, 3, 3), 2), stride=2, padding=1)
    assert [len(list(to_stock_layer(cp, p).children())) for p in cp.paths[1:]] == [4, 2, 3]
    (dense,) = to_stock_layer(cp, "dense").modules()
    assert isinstance(dense, nn.Conv2d)
    assert (dense.stride, dense.padding) == ((2, 2), (1, 1))


@given(
    format=st.sampled_from(FORMATS),
    axes=st.integers(1, 3),
    groups=st.sampled_from([1, 2]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.sampled_from(["same", "valid", 0, 1, "uneven"]),
    padding_mode=st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]),
    bias=st.booleans(),
    batched=st.booleans(),
)
@settings(max_examples=50, deadline=None)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
def test_convolutions(
    format: str,
    axes: int,
    groups: int,
    kernel: int,
    stride: int,
    dilation: int,
    padding: Any,
    padding_mode: str,
    bias: bool,
    batched: bool,
) -> None:
    shape = (6 * groups, 4, *(kernel + (k == axes - 1) for k in range(axes)))
    f = random_grouped(format, shape, groups)
    batched = batched or format == "kron"  # which takes batches only
    if padding == "same":
        stride = 1
    if padding == "uneven":
        padding, padding_mode = tuple((k, 1) for k in range(axes)), "zeros"
    layer = CONVS[axes](
        f,
        seeded(f.shape[0], seed=9) if bias else None,
        stride=stride,
        padding=padding,
        dilation=dilation,
        padding_mode=padding_mode,
    )
    size = range(8, 8 + axes)
    x = torch.randn(2, layer.in_channels, *size, dtype=f.dtype)
    check_every_path(layer, x if batched else x[0])


def test_padding_that_differs_from_side_to_side_is_put_ahead() -> None:
    layer = FactoredConv2d(random_factors("cp", (6, 4, 3, 3)), padding=((0, 1), (2, 2)), stride=2)
    for stock in (to_dense_layer(layer), to_stock_layer(layer, "dense"), to_stock_layer(layer)):
        assert isinstance(stock, nn.Sequential)
        assert isinstance(stock[0], nn.ZeroPad2d)
        assert stock[0].padding == (2, 2, 0, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_flags_dtype_and_memory_format(dtype: torch.dtype, training: bool) -> None:
    like = nn.Conv2d(4, 6, 3).to(dtype, memory_format=torch.channels_last).train(training)
    like.weight.requires_grad_(False)
    layer = FactoredConv2d.from_factors(random_factors("tucker", (6, 4, 3, 3)), like)
    for stock in (to_dense_layer(layer), to_stock_layer(layer)):
        assert all(m.training == training for m in stock.modules())
        named = dict(stock.named_parameters())
        assert {p.dtype for p in named.values()} == {dtype}
        assert {p.requires_grad for n, p in named.items() if "bias" in n} == {True}
        assert {p.requires_grad for n, p in named.items() if "weight" in n} == {False}
        kernels = [p for p in named.values() if p.ndim == 4 and p.shape[-1] == 3]
        assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


def test_dense_layers_are_what_they_were() -> None:
    for like in (
        nn.Linear(5, 7, bias=False),
        nn.Conv1d(4, 6, 3, padding=2, padding_mode="circular"),
        nn.Conv2d(4, 6, (3, 4), padding="same"),
        nn.Conv2d(8, 6, 3, stride=(1, 2), dilation=2, groups=2),
        nn.Conv3d(4, 6, 2, padding="valid"),
    ):
        f = random_grouped("cp", tuple(like.weight.shape), getattr(like, "groups", 1))
        dense = to_dense_layer(factored(f, like))
        assert type(dense) is type(like)
        assert repr(dense) == repr(like)
        assert dense.state_dict().keys() == like.state_dict().keys()


def test_a_conv1d_of_transformers() -> None:
    utils = importlib.import_module("transformers.pytorch_utils")
    f = random_factors("lowrank", (7, 5))
    layer = FactoredHFConv1D.from_factors(f, utils.Conv1D(7, 5).double())
    dense = to_dense_layer(layer)
    assert type(dense) is utils.Conv1D
    assert (dense.nf, dense.nx) == (7, 5)
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    agree(dense(x), layer(x))
    # What runs without transformers too.
    linear = to_stock_layer(layer, "dense")
    assert type(linear) is nn.Linear
    agree(linear(x), layer(x))
    agree(to_stock_layer(layer)(x), layer(x))


def test_a_chain_answers_for_dtype_and_device() -> None:
    layer = FactoredLinear(random_factors("lowrank", (7, 5)))
    for stock in (
        to_stock_layer(layer),
        to_stock_layer(layer).half(),
        to_stock_layer(layer).to("meta"),
    ):
        assert isinstance(stock, nn.Sequential)
        weight: Any = stock.weight
        own = next(stock.parameters())
        assert (weight.dtype, weight.device) == (own.dtype, own.device)
        assert weight.numel() == 0
        assert set(stock.state_dict()) == {"0.weight", "1.weight"}


def test_nothing_is_drawn_and_a_copy_is_independent() -> None:
    layer = FactoredConv2d(random_factors("cp", (6, 4, 3, 3)))
    state = torch.get_rng_state()
    to_stock_layer(layer)
    twin = copy.deepcopy(to_dense_layer(layer))
    assert torch.equal(torch.get_rng_state(), state)
    agree(twin.weight, layer.weight.clone())


def test_a_parametrized_factor_is_what_is_told() -> None:
    class Doubled(nn.Module):
        def forward(self, t: Tensor) -> Tensor:
            return 2 * t

    layer = FactoredLinear(random_factors("lowrank", (7, 5)))
    torch.nn.utils.parametrize.register_parametrization(layer, "left", Doubled())
    x = torch.randn(3, 5, dtype=torch.float64)
    agree(to_stock_layer(layer)(x), layer(x))
    agree(to_dense_layer(layer)(x), layer(x))


def test_refusals() -> None:
    layer = FactoredLinear(random_factors("lowrank", (7, 5)))
    with pytest.raises(ArgumentError, match="path='fold' is unknown; choose one of dense, chain"):
        to_stock_layer(layer, "fold")


@pytest.mark.parametrize("format", ["kron", "tt"])
def test_what_is_a_graph_can_be_pickled(format: str) -> None:
    layer = FactoredLinear(random_factors(format, (8, 6)), seeded(8, seed=9))
    stock, x = to_stock_layer(layer), seeded(3, 6, seed=1)
    assert any(isinstance(m, torch.fx.GraphModule) for m in stock.modules())
    again = pickle.loads(pickle.dumps(stock))
    assert torch.equal(again(x), stock(x))
