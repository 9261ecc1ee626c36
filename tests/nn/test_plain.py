"""Subclasses that compute what a plain layer does are known; what is known is checked."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tensorlrf.errors import ArgumentError, UnsupportedError
from tensorlrf.nn import FactoredConv2d, FactoredLinear, Plain, factorize, register_plain
from tensorlrf.nn import plain as known
from tensorlrf.nn.behaviour.mismatch import mismatch, torch_layer
from tensorlrf.nn.behaviour.seen import plain_of
from tensorlrf.nn.obstacles import plain_layer, why_not


def same_pads(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """TensorFlow's "SAME": zeros on both sides so that the output is ceil(size / stride) large."""
    n = math.ceil(size / stride)
    total = max((n - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


class Conv2dStaticSamePadding(nn.Conv2d):
    """Looks like the one of efficientnet_pytorch: it pads for one size of image."""

    def __init__(self, i: int, o: int, kernel: Any, image: int = 16, **options: Any) -> None:
        super().__init__(i, o, kernel, **options)
        self.stride = list(self.stride)  # type: ignore[assignment]
        (top, below), (left, right) = (
            same_pads(image, k, s, d)
            for k, s, d in zip(self.kernel_size, self.stride, self.dilation, strict=True)
        )
        pads = any((top, below, left, right))
        self.static_padding: nn.Module = (
            nn.ZeroPad2d((left, right, top, below)) if pads else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.static_padding(x)
        return F.conv2d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class Conv2dDynamicSamePadding(nn.Conv2d):
    """Looks like the one of efficientnet_pytorch: it pads by the size of its input."""

    def forward(self, x: Tensor) -> Tensor:
        (top, below), (left, right) = (
            same_pads(n, k, s, d)
            for n, k, s, d in zip(
                x.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True
            )
        )
        x = F.pad(x, (left, right, top, below))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Conv2dSame(Conv2dDynamicSamePadding):
    """Looks like timm's."""


Conv2dStaticSamePadding.__module__ = "efficientnet_lite_pytorch.utils"
Conv2dDynamicSamePadding.__module__ = "efficientnet_pytorch.utils"
Conv2dSame.__module__ = "timm.layers.conv2d_same"


class Double(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Orthogonal(nn.Linear):
    def reset_parameters(self) -> None:
        nn.init.orthogonal_(self.weight)
        nn.init.zeros_(self.bias)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "_REGISTERED", {})


@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    image=st.integers(9, 17),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
    own=st.integers(0, 1),
)
@settings(max_examples=40, deadline=None)
def test_static_padding_is_told_side_by_side(
    kernel: tuple[int, int],
    stride: int,
    dilation: int,
    image: int,
    groups: int,
    bias: bool,
    own: int,
) -> None:
    conv = Conv2dStaticSamePadding(
        4,
        6,
        kernel,
        image,
        stride=stride,
        dilation=dilation,
        groups=groups,
        bias=bias,
        padding=own,
    )
    plain = plain_of(conv)
    assert isinstance(plain, Plain)
    assert plain.stride == (stride, stride)
    assert plain.groups == groups
    assert why_not(conv) == ""
    x = torch.randn(2, 4, 13, 18, generator=torch.Generator().manual_seed(0))
    twin = torch_layer(plain, conv.weight, conv.bias)
    torch.testing.assert_close(twin(x), conv(x), rtol=0, atol=1e-6)


def test_a_static_conv_becomes_a_factored_one() -> None:
    conv = Conv2dStaticSamePadding(8, 12, 3, 16, stride=2).double()
    layer = factorize(conv, "svd", 12)
    assert type(layer) is FactoredConv2d
    assert layer.stands_for == "Conv2dStaticSamePadding"
    assert layer.padding == ((0, 1), (0, 1))
    x = torch.randn(2, 8, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(layer(x), conv(x), rtol=0, atol=1e-12)


def test_padding_by_the_size_of_the_input() -> None:
    for cls in (Conv2dDynamicSamePadding, Conv2dSame):
        assert why_not(cls(4, 6, 3)) == "pads by the size of its input"
        assert why_not(cls(4, 6, (1, 2))) == "pads by the size of its input"
        for stride in (1, 2, 3):
            conv = cls(4, 6, 1, stride=stride)
            assert why_not(conv) == ""
            layer = factorize(conv, "svd", 4)
            for size in range(4, 9):
                x = torch.randn(1, 4, size, size)
                torch.testing.assert_close(layer(x), conv(x), rtol=0, atol=1e-5)


def test_names_are_matched_with_their_package() -> None:
    class NonDynamicallyQuantizableLinear(nn.Linear):  # of nobody we know
        pass

    assert why_not(NonDynamicallyQuantizableLinear(4, 6)) == ""
    assert "read by MultiheadAttention" in why_not(nn.MultiheadAttention(4, 2).out_proj)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (
            lambda c: setattr(c, "static_padding", nn.ReflectionPad2d(1)),
            "pads by a ReflectionPad2d",
        ),
        (lambda c: setattr(c, "static_padding", nn.ZeroPad2d(-1)), "does not know"),
        (lambda c: setattr(c, "padding", "same"), "does not know"),
        (lambda c: c.register_buffer("mask", torch.ones(1)), r"holds more .*\(mask\)"),
        (lambda c: c.register_forward_hook(lambda *_: None), "has hooks"),
    ],
)
def test_a_known_layer_in_another_form_stays(
    spoil: Callable[[nn.Module], object], reason: str
) -> None:
    conv = Conv2dStaticSamePadding(4, 6, 3)
    spoil(conv)
    with pytest.raises(UnsupportedError, match=reason):
        FactoredConv2d.from_factors(factorize(nn.Conv2d(4, 6, 3), "svd", 2).factors, conv)


def test_what_is_known_is_not_believed_unseen() -> None:
    class Conv2dStaticSamePadding(nn.Conv2d):
        static_padding = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 1.01

    Conv2dStaticSamePadding.__module__ = "efficientnet_pytorch"
    conv = Conv2dStaticSamePadding(4, 6, 3)
    assert why_not(conv) == "its forward differs from what this version knows"
    # Without values nothing can be seen.
    assert mismatch(conv.to("meta"), Plain.of(conv)) == ""


@pytest.mark.usefixtures("registry")
class TestRegistration:
    def test_a_subclass_can_be_made_known(self) -> None:
        layer = Orthogonal(5, 4)
        register_plain(Orthogonal, Plain.of)
        assert plain_layer(layer) == Plain("Linear")
        factored = factorize(layer, "svd", 4)
        assert type(factored) is FactoredLinear
        assert factored.stands_for == "Orthogonal"
        x = torch.randn(3, 5)
        torch.testing.assert_close(factored(x), layer(x))

    def test_a_padding_of_ones_own(self) -> None:
        class Causal(nn.Conv1d):
            def forward(self, input: Tensor) -> Tensor:
                return super().forward(F.pad(input, (2, 0)))

        register_plain(Causal, lambda layer: replace(Plain.of(layer), padding=((2, 0),)))
        conv = Causal(4, 6, 3)
        assert why_not(conv) == ""
        layer = factorize(conv, "svd", 6)
        x = torch.randn(2, 4, 9)
        torch.testing.assert_close(layer(x), conv(x), rtol=0, atol=1e-5)

    def test_the_forward_decides(self) -> None:
        register_plain(Double, Plain.of)
        assert "forward differs" in why_not(Double(5, 4))

        class Fails(nn.Linear):
            def forward(self, input: Tensor) -> Tensor:
                raise RuntimeError("needs a mask")

        register_plain(Fails, Plain.of)
        assert "fails on a small input (RuntimeError: needs a mask)" in why_not(Fails(5, 4))

    def test_a_reason_is_kept(self) -> None:
        register_plain(Double, lambda layer: "gives twice as much")
        assert why_not(Double(5, 4)) == "gives twice as much"

    def test_refusals(self) -> None:
        register_plain(Orthogonal, Plain.of)
        for taken in (Orthogonal, nn.Linear, Conv2dStaticSamePadding):
            with pytest.raises(ArgumentError, match=f"cls={taken.__name__} is known already"):
                register_plain(taken, Plain.of)
        for odd in (nn.Embedding, nn.Bilinear, 3):
            with pytest.raises(ArgumentError, match="is no subclass of"):
                register_plain(odd, Plain.of)  # type: ignore[arg-type]
        register_plain(Double, lambda layer: None)  # type: ignore[arg-type, return-value]
        with pytest.raises(ArgumentError, match="describe of Double gave None"):
            why_not(Double(5, 4))

        class Conv(nn.Conv2d):
            pass

        register_plain(Conv, lambda layer: Plain("Linear"))
        with pytest.raises(ArgumentError, match="gave kind='Linear'; its base is a Conv2d"):
            why_not(Conv(4, 6, 3))


@pytest.mark.usefixtures("registry")
def test_the_probe_leaves_everything_as_it_was() -> None:
    class Counts(nn.Linear):
        calls = 0

        def forward(self, input: Tensor) -> Tensor:
            self.calls += 1
            assert not self.training
            assert not torch.is_grad_enabled()
            return super().forward(input)

    register_plain(Counts, Plain.of)
    layer = Counts(5, 4)
    state = torch.get_rng_state()
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    assert why_not(layer) == ""
    assert torch.equal(torch.get_rng_state(), state)
    assert layer.calls == 0
    assert layer.training
    assert all(torch.equal(t, before[name]) for name, t in layer.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_probe_serves_every_dtype(dtype: torch.dtype) -> None:
    conv = Conv2dStaticSamePadding(64, 32, 3, stride=2).to(dtype)
    assert why_not(conv) == ""
    assert why_not(conv.to(memory_format=torch.channels_last)) == ""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert why_not(conv) == ""


def test_a_weight_with_nan_is_not_called_another_forward() -> None:
    conv = Conv2dStaticSamePadding(4, 6, 3)
    with torch.no_grad():
        conv.weight[0, 0, 0, 0] = math.nan
    assert why_not(conv) == ""


def test_what_a_plain_layer_may_be() -> None:
    with pytest.raises(ArgumentError, match="kind='Bilinear' is unknown; choose one of Linear"):
        Plain("Bilinear")
    with pytest.raises(ArgumentError, match=r"stride=\(1,\) must have 2 entries for a Conv2d"):
        Plain("Conv2d", (1,), (0, 0), (1, 1))
    with pytest.raises(ArgumentError, match="two sides that differ are of zeros"):
        Plain("Conv1d", (1,), ((1, 0),), (1,), padding_mode="reflect")
    with pytest.raises(ArgumentError, match="layer is a Embedding; pass one of Linear, Conv1d"):
        Plain.of(nn.Embedding(3, 4))


@pytest.mark.slow  # reads a package of requirements-examples.txt
def test_the_efficientnet_itself() -> None:
    package = importlib.import_module("efficientnet_lite_pytorch")
    model = package.EfficientNet.from_name("efficientnet-lite0")
    reasons = [why_not(m) for m in model.modules() if type(m).__name__ == "Conv2dStaticSamePadding"]
    assert len(reasons) == 49
    assert all(not reason or reason.startswith("depthwise") for reason in reasons)
    assert sum(not reason for reason in reasons) == 33
    stem = model._conv_stem
    layer = factorize(stem, "svd", 27)
    x = torch.randn(1, 3, 30, 31)
    torch.testing.assert_close(layer(x), stem(x), rtol=0, atol=1e-5)
