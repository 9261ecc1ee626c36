"""FactoredConv2d computes what torch's layer computes with its kernel, every option included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call

from tensorlrf.errors import ArgumentError
from tensorlrf.nn import FactoredConv2d
from tensorlrf.ops import PathTable, conv2d_paths
from tests.nn.samples import (
    FORMATS,
    assert_within_rounding,
    dense_conv,
    factored,
    magnitude_of,
    random_factors,
)

PATHS = [(f, path) for f in FORMATS for path in conv2d_paths(random_factors(f, (3, 3, 3, 3)))]
pairs = st.tuples(st.integers(1, 2), st.integers(1, 2))


@st.composite
def conv_options(draw: st.DrawFn) -> dict[str, Any]:
    """Options of nn.Conv2d that an input of 6 x 6 can bear."""
    stride = draw(st.one_of(st.integers(1, 3), st.tuples(st.integers(1, 3), st.integers(1, 3))))
    counts = st.integers(0, 2)
    paddings = [counts, st.tuples(counts, counts), st.just("valid")]
    if stride in (1, (1, 1)):
        paddings.append(st.just("same"))
    return {
        "stride": stride,
        "padding": draw(st.one_of(paddings)),
        "dilation": draw(st.one_of(st.integers(1, 2), pairs)),
        "padding_mode": draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
        "bias": draw(st.booleans()),
    }


@pytest.mark.parametrize(("format", "path"), PATHS)
@settings(max_examples=25, derandomize=True, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 4)] * 2, *[st.integers(1, 3)] * 2),
    options=conv_options(),
    batch=st.sampled_from([None, 0, 1, 3]),
    extra=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    channels_last=st.booleans(),
)
def test_agrees_with_the_dense_layer(
    format: str,
    path: str,
    shape: tuple[int, int, int, int],
    options: dict[str, Any],
    batch: int | None,
    extra: tuple[int, int],
    channels_last: bool,
) -> None:
    f = random_factors(format, shape)
    like = dense_conv(f, **options)
    layer = factored(f, like, path)
    size = (() if batch is None else (batch,)) + (shape[1], 6 + extra[0], 6 + extra[1])
    x = torch.randn(*size, dtype=torch.float64, generator=torch.Generator())
    if channels_last and batch is not None:
        x = x.contiguous(memory_format=torch.channels_last)
    want, magnitude = like(x), magnitude_of(like, f)(x.abs())
    assert_within_rounding(layer(x), want, magnitude, f)
    layer.eval()
    with torch.no_grad():
        for _ in range(2):
            assert_within_rounding(layer(x), want, magnitude, f)
    rows = want.numel() // want.shape[-3]
    assert layer._rows(x) == rows


@pytest.mark.parametrize(("format", "path"), PATHS)
def test_gradients_are_those_through_the_dense_kernel(format: str, path: str) -> None:
    f = random_factors(format, (5, 4, 3, 2))
    like = dense_conv(f, stride=(2, 1), padding=(1, 2), padding_mode="reflect")
    layer = factored(f, like, path)
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64, requires_grad=True)
    dy = torch.randn_like(like(x))
    parameters = dict(layer.named_parameters())

    got = torch.autograd.grad(layer(x), [*parameters.values(), x], dy)
    y = functional_call(like, {"weight": layer.weight, "bias": layer.bias}, (x,))
    want = torch.autograd.grad(y, [*parameters.values(), x], dy)

    positive = factored(f.map(torch.abs), like, "dense")
    size = x.detach().abs().requires_grad_()
    magnitudes = torch.autograd.grad(
        positive(size), [*dict(positive.named_parameters()).values(), size], dy.abs()
    )
    for name, a, b, magnitude in zip([*parameters, "x"], got, want, magnitudes, strict=True):
        assert a.abs().max() > 0, name
        assert_within_rounding(a, b, magnitude, f, rows=dy.numel())


@pytest.mark.parametrize(("format", "path"), PATHS)
def test_channels_last_is_kept(format: str, path: str) -> None:
    f = random_factors(format, (5, 4, 3, 3))
    layer = factored(f, dense_conv(f, padding=1), path)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    assert layer(x).is_contiguous(memory_format=torch.channels_last)
    layer.eval()
    with torch.no_grad():
        assert layer(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("format", FORMATS)
def test_memory_format_of_the_parameters_can_be_set(format: str) -> None:
    f = random_factors(format, (5, 4, 3, 3))
    like = dense_conv(f).to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    for layer in (
        FactoredConv2d.from_factors(f, like),
        factored(f, dense_conv(f)).to(memory_format=torch.channels_last),
    ):
        for p in layer.parameters():
            expected = torch.channels_last if p.ndim == 4 else torch.contiguous_format
            assert p.is_contiguous(memory_format=expected)
        magnitude = magnitude_of(like, f)(x.abs())
        assert_within_rounding(layer(x), like(x), magnitude, f)


def test_attributes_are_those_of_the_torch_layer() -> None:
    f = random_factors("cp", (5, 4, 3, 2))
    options: dict[str, Any] = {
        "stride": (2, 1),
        "padding": (1, 2),
        "dilation": 2,
        "padding_mode": "circular",
    }
    like = dense_conv(f, **options)
    layer = FactoredConv2d.from_factors(f, like)
    for name in (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
        "training",
    ):
        assert getattr(layer, name) == getattr(like, name), name
    assert FactoredConv2d(f, padding="same").padding == "same"
    layer.path_table = PathTable.single("fold")
    assert repr(layer) == (
        "FactoredConv2d(4, 5, kernel_size=(3, 2), stride=(2, 1), padding=(1, 2), dilation=(2, 2), "
        "padding_mode=circular, bias=True, format=cp, rank=2, share=25.0%, path=fold)"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "stride=0"),
        ({"stride": (1, 2, 3)}, r"stride=\(1, 2, 3\)"),
        ({"dilation": (1, 0)}, r"dilation=\(1, 0\)"),
        ({"padding": -1}, "padding=-1"),
        ({"padding": "full"}, "padding='full' is unknown; choose 'same', 'valid'"),
        ({"padding": "same", "stride": 2}, "padding='same' needs stride 1"),
        ({"padding_mode": "mirror"}, "padding_mode='mirror' is unknown; choose one of zeros"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        FactoredConv2d(random_factors("cp", (3, 3, 3, 3)), **options)
