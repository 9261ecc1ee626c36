"""FactoredLinear computes what torch's layer computes with its weight."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call

from tensorlrf.nn import FactoredLinear
from tensorlrf.ops import PathTable
from tests.nn.samples import (
    FORMATS,
    assert_within_rounding,
    dense_linear,
    factored,
    magnitude_of,
    random_factors,
)


@pytest.mark.parametrize("path", ["dense", "chain"])
@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=8, derandomize=True, deadline=None)
@given(
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    rank=st.integers(1, 3),
    bias=st.booleans(),
    leading=st.lists(st.integers(0, 3), max_size=3),
)
def test_agrees_with_the_dense_layer(
    format: str, path: str, size: tuple[int, int], rank: int, bias: bool, leading: list[int]
) -> None:
    f = random_factors(format, size, rank)
    like = dense_linear(f, bias)
    layer = factored(f, like, path)
    x = torch.randn(*leading, size[1], dtype=torch.float64, generator=torch.Generator())
    magnitude = magnitude_of(like, f)(x.abs())
    assert_within_rounding(layer(x), like(x), magnitude, f)
    assert_within_rounding(layer.weight, like.weight, f.map(torch.abs).to_dense(), f)
    layer.eval()
    with torch.no_grad():
        for _ in range(2):  # a weight that was kept serves as well as a new one
            assert_within_rounding(layer(x), like(x), magnitude, f)


@pytest.mark.parametrize("path", ["dense", "chain"])
@pytest.mark.parametrize("format", FORMATS)
def test_gradients_are_those_through_the_dense_weight(format: str, path: str) -> None:
    f = random_factors(format, (5, 4))
    like = dense_linear(f)
    layer = factored(f, like, path)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(3, 5, dtype=torch.float64)
    parameters = dict(layer.named_parameters())

    got = torch.autograd.grad(layer(x), [*parameters.values(), x], dy)
    y = functional_call(like, {"weight": layer.weight, "bias": layer.bias}, (x,))
    want = torch.autograd.grad(y, [*parameters.values(), x], dy)

    positive = factored(f.map(torch.abs), like, "dense")
    with torch.no_grad():
        positive.bias.abs_()
    size = x.detach().abs().requires_grad_()
    magnitudes = torch.autograd.grad(
        positive(size), [*dict(positive.named_parameters()).values(), size], dy.abs()
    )
    for name, a, b, magnitude in zip([*parameters, "x"], got, want, magnitudes, strict=True):
        assert a.abs().max() > 0, name
        assert_within_rounding(a, b, magnitude, f, rows=3)


def test_the_path_table_decides_by_rows() -> None:
    f = random_factors("lowrank", (5, 4))
    layer = FactoredLinear(f)
    layer.path_table = PathTable(((6, "dense"), (None, "chain")))
    assert layer._path(torch.empty(2, 3, 4)) == "dense"
    assert layer._path(torch.empty(7, 4)) == "chain"
    assert layer._path(torch.empty(4)) == "dense"


def test_sizes_and_repr_are_those_of_the_torch_layer() -> None:
    layer = FactoredLinear(random_factors("lowrank", (6, 8)), torch.zeros(6, dtype=torch.float64))
    assert (layer.in_features, layer.out_features) == (8, 6)
    layer.path_table = PathTable.single("chain")
    assert repr(layer) == (
        "FactoredLinear(in_features=8, out_features=6, bias=True, format=lowrank, rank=2, "
        "share=58.3%, path=chain)"
    )
