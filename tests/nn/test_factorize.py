"""factorize: decompose the weight, keep everything else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tensorlrf import decomposition
from tensorlrf.errors import ArgumentError, RankError, UnsupportedError
from tensorlrf.factors import CPFactors, Factors, LowRank, TuckerFactors
from tensorlrf.nn import FactoredConv2d, FactoredLinear, factorize

EPS = torch.finfo(torch.float64).eps


def conv(**options: Any) -> nn.Conv2d:
    layer = nn.Conv2d(6, 8, 3, dtype=torch.float64, **options)
    return layer.requires_grad_(False)


def brief(method: str) -> dict[str, Any]:
    """Options that make it repeat and keep it short: what is tested is not how well it fits."""
    return {"random_state": 0, "n_iter_max": 3} if method == "cp" else {}


@pytest.mark.parametrize(
    ("method", "format"), [("svd", LowRank), ("tucker", TuckerFactors), ("cp", CPFactors)]
)
def test_at_full_rank_the_layer_computes_the_same(method: str, format: type[Factors]) -> None:
    linear = nn.Linear(6, 8, dtype=torch.float64)
    layer = factorize(linear, method, 6, **({"random_state": 0} if method == "cp" else {}))
    assert isinstance(layer, FactoredLinear)
    assert isinstance(layer.factors, format)
    x = torch.randn(5, 6, dtype=torch.float64)
    # CP is iterative: it ends at its tolerance, the others at rounding.
    size = float(linear.weight.detach().norm() * x.norm())
    tolerance = 1e-6 if method == "cp" else 64 * EPS
    assert float((layer(x) - linear(x)).detach().norm()) <= tolerance * size


@pytest.mark.parametrize("method", ["svd", "cp", "tucker"])
def test_conv_keeps_every_option_and_the_layer_is_unchanged(method: str) -> None:
    layer = conv(stride=(2, 1), padding=(1, 2), dilation=(1, 2), padding_mode="reflect").eval()
    state = {name: t.clone() for name, t in layer.state_dict().items()}
    small = factorize(layer, method, 2, **brief(method))
    assert isinstance(small, FactoredConv2d)
    for name in ("stride", "padding", "dilation", "padding_mode", "training"):
        assert getattr(small, name) == getattr(layer, name)
    assert torch.equal(small.bias, layer.bias)
    assert small.weight.dtype == layer.weight.dtype
    assert not any(p.requires_grad for p in small.parameters())
    assert type(layer) is nn.Conv2d
    for name, t in layer.state_dict().items():
        assert torch.equal(t, state[name])


@pytest.mark.parametrize("method", ["svd", "cp", "tucker"])
def test_the_two_steps_in_one(method: str) -> None:
    layer = conv()
    options = {"modes": (0, 1)} if method == "tucker" else brief(method)
    f = getattr(decomposition, method)(layer.weight, 3, **options)
    small = factorize(layer, method, 3, **brief(method))
    for name, t in small.factors.tensors().items():
        assert torch.equal(t, f.tensors()[name])
    assert small.factors.meta() == f.meta()


def test_tucker_of_a_convolution_is_tucker_2_unless_told() -> None:
    assert factorize(conv(), "tucker", (4, 3)).factors.meta()["modes"] == [0, 1]
    full = factorize(conv(), "tucker", (4, 3, 2, 2), modes=(0, 1, 2, 3))
    assert full.factors.meta()["modes"] == [0, 1, 2, 3]
    assert full.factors.rank == (4, 3, 2, 2)


def test_an_error_instead_of_a_rank() -> None:
    layer = conv()
    for method in ("svd", "tucker"):
        small = factorize(layer, method, error=0.5)
        assert small.factors.rel_error(layer.weight) <= 0.5
        assert small.factors.n_params < layer.weight.numel()


@pytest.mark.parametrize("method", ["svd", "tucker"])
def test_gram_makes_the_outputs_nearer(method: str) -> None:
    linear = nn.Linear(6, 8, bias=False, dtype=torch.float64)
    scales = torch.tensor([10.0, 5.0, 2.0, 0.5, 0.1, 0.01], dtype=torch.float64)
    draws = torch.Generator().manual_seed(11)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(8, 6, generator=draws))
    x = torch.randn(200, 6, dtype=torch.float64, generator=draws) * scales
    aware = factorize(linear, method, 2, gram=x.T @ x / len(x))
    plain = factorize(linear, method, 2)
    want = linear(x)
    assert (aware(x) - want).norm() < (plain(x) - want).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_is_that_of_the_layer(dtype: torch.dtype) -> None:
    layer = factorize(nn.Linear(6, 8).to(dtype), "svd", 2)
    assert {p.dtype for p in layer.parameters()} == {dtype}


def test_an_option_of_the_decomposition_may_have_our_words() -> None:
    linear = nn.Linear(6, 8)
    layer = factorize(linear, "svd", 2, solver="randomized", random_state=0)
    again = factorize(linear, "svd", 2, solver="randomized", random_state=0)
    assert torch.equal(layer.weight, again.weight)


def test_unknown_words_are_refused_with_the_known_ones() -> None:
    linear = nn.Linear(6, 8)
    with pytest.raises(ArgumentError, match="method='svdd' is unknown; choose one of svd, cp, tuc"):
        factorize(linear, "svdd", 2)
    with pytest.raises(ArgumentError, match=r"n_iter= is no option of method 'cp'.*n_iter_max"):
        factorize(linear, "cp", 2, n_iter=3)
    with pytest.raises(ArgumentError, match="batch_dims= is no option of method 'svd'"):
        factorize(linear, "svd", 2, batch_dims=1)
    with pytest.raises(ArgumentError, match="differentiable= is no option of method 'svd'"):
        factorize(linear, "svd", 2, differentiable=True)


@pytest.mark.parametrize(
    ("method", "format"),
    [
        ("kron", "kron"), ("tt", "tt_matrix"), ("tr", "tr"), ("blr", "blr"), ("hodlr", "blr"),
        ("hierarchical", "blr"), ("monarch", "monarch"), ("blast", "blast"),
    ],
)  # fmt: skip
def test_a_linear_layer_on_each_structured_format(method: str, format: str) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(24, 36)
    options = {"leaf": 6} if method in ("hodlr", "hierarchical") else {}
    layer = factorize(linear, method, 0.5, **options)
    assert layer.factors.format == format
    assert layer.factors.n_params <= 0.5 * 24 * 36
    x = torch.randn(3, 24)
    dense = nn.functional.linear(x, layer.weight, linear.bias)
    torch.testing.assert_close(layer(x), dense, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["kron", "tt"])
def test_a_convolution_on_a_structured_format(method: str) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 12, 3, stride=(1, 2), padding=1)
    layer = factorize(conv, method, 0.5)
    x = torch.randn(2, 8, 7, 9)
    dense = nn.functional.conv2d(x, layer.weight, conv.bias, (1, 2), 1)
    torch.testing.assert_close(layer(x), dense, rtol=1e-4, atol=1e-5)


def test_structured_formats_say_what_they_do_not_serve() -> None:
    conv = nn.Conv2d(8, 12, 3)
    with pytest.raises(UnsupportedError, match="ring"):
        factorize(conv, "tr", 2)
    with pytest.raises(UnsupportedError, match=r"svd|kron"):
        factorize(conv, "blr", 2)
    with pytest.raises(ArgumentError, match="order=3 is for linear layers"):
        factorize(conv, "tt", 2, order=3)


def test_what_the_decomposition_refuses() -> None:
    linear = nn.Linear(6, 8)
    with pytest.raises(RankError, match="rank=7"):
        factorize(linear, "svd", 7)
    with pytest.raises(ArgumentError, match="give rank or error"):
        factorize(linear, "svd")
    with torch.no_grad():
        linear.weight[0, 0] = torch.nan
    with pytest.raises(ArgumentError, match="NaN"):
        factorize(linear, "svd", 2)
