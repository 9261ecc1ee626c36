"""A subclass of which nothing is known is replaced where its forward is that of a plain layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tensorlrf.nn import factorize
from tensorlrf.nn.obstacles import plain_layer, why_not, why_not_rewritten
from tests.draws import seeded


class ByProduct(nn.Linear):
    """As FalconLinear of transformers: a product, and then a sum."""

    def forward(self, input: Tensor) -> Tensor:
        hidden = input @ self.weight.T
        return hidden if self.bias is None else hidden + self.bias


class Causal(nn.Conv1d):
    """Zeros before the start alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, ((self.kernel_size[0] - 1) * self.dilation[0], 0)))


class Same(nn.Conv2d):
    """By a module of its own."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        sides = [((k - 1) // 2, k // 2) for k in self.kernel_size]
        self.zeros = nn.ZeroPad2d([n for side in reversed(sides) for n in side])

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(self.zeros(x), self.weight, self.bias)


class Up(nn.ConvTranspose2d):
    def forward(self, x: Tensor, output_size: Any = None) -> Tensor:
        return super().forward(x, output_size)


DTYPES = [torch.float64, torch.float32, torch.bfloat16]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_what_computes_the_same_is_taken(data: st.DataObject) -> None:
    draw = data.draw
    size, dtype, bias = draw(st.integers(2, 9)), draw(st.sampled_from(DTYPES)), draw(st.booleans())
    kernel, stride = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    options: dict[str, Any] = {"stride": stride, "bias": bias, "dtype": dtype}
    layer: Any = draw(
        st.sampled_from(
            [
                lambda: ByProduct(size, 5, bias=bias, dtype=dtype),
                lambda: Causal(size, 5, kernel, dilation=2, **options),
                lambda: Same(size, 5, (kernel, 3), **options),
                lambda: Up(size, 5, kernel, padding=kernel // 2, **options),
            ]
        )
    )()
    assert why_not(layer) == ""
    if dtype is not torch.float64:
        return
    small = factorize(layer, "svd", error=1e-9)
    x = seeded(3, size, *((7, 8) if layer.weight.ndim == 4 else (9,))[: layer.weight.ndim - 2])
    torch.testing.assert_close(small(x), layer(x), rtol=1e-7, atol=1e-7)
    assert small.stands_for == type(layer).__name__


def test_it_is_known_on_meta_as_well() -> None:
    layer = Same(3, 5, (3, 4), device="meta")
    plain = plain_layer(layer)
    assert plain is not None
    assert plain.padding == ((1, 1), (1, 2))


def sub(forward: Callable[..., Any], base: type[nn.Module] = nn.Linear) -> type[Any]:
    return type("Sub", (base,), {"forward": forward})


def noisy(self: Any, x: Tensor) -> Tensor:
    y = F.linear(x, self.weight, self.bias)
    return y + torch.randn_like(y) if self.training else y


def loose(self: Any, x: Tensor) -> Tensor:
    return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


def routed(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = F.linear(x, self.weight, self.bias)
    return y.softmax(-1), y


def clipped(self: Any, x: Tensor) -> Tensor:
    return F.linear(x.clamp(-6, 6), self.weight, self.bias)


def of_two(self: Any, x: Tensor) -> Tensor:
    if x.ndim > 2:
        x = x.flip(-2).transpose(0, -2).contiguous().transpose(0, -2)
    return F.linear(x, self.weight, self.bias)


def by_size(self: Any, x: Tensor) -> Tensor:
    """TensorFlow's "SAME"."""
    more = [max((-(-n // 2) - 1) * 2 + 3 - n, 0) for n in x.shape[-2:]]
    sides = [n for m in reversed(more) for n in (m // 2, m - m // 2)]
    return F.conv2d(F.pad(x, sides), self.weight, self.bias, self.stride)


def with_cache(self: Any, x: Tensor, cache: Any = None) -> Tensor:
    return F.linear(x, self.weight, self.bias)


def fails(self: Any, x: Tensor) -> Tensor:
    raise RuntimeError("needs a mask")


OTHERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "scaled": (lambda: sub(lambda s, x: 2 * F.linear(x, s.weight, s.bias))(4, 5), "small input"),
    "activation": (lambda: sub(lambda s, x: F.linear(x, s.weight).relu())(4, 5), "small input"),
    "noise in training": (lambda: sub(noisy)(4, 5), "in training mode"),
    "casts": (lambda: sub(loose)(4, 5), "on inputs of other dtypes"),
    "a pair": (lambda: sub(routed)(4, 5), "small input"),
    "clipped": (lambda: sub(clipped)(4, 5), "on large inputs"),
    "more dimensions": (lambda: sub(of_two)(4, 5), "on inputs of other dimensions"),
    "pads by size": (lambda: sub(by_size, nn.Conv2d)(4, 5, 3, stride=2), "forward"),
    "more arguments": (lambda: sub(with_cache)(4, 5), r"takes more than an input (cache)"),
    "fails": (lambda: sub(fails)(4, 5), "fails on a small input (RuntimeError: needs a mask)"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_differs_stays_with_the_reason(case: str) -> None:
    make, why = OTHERS[case]
    assert why in why_not(make())


def test_no_number_of_the_user_is_drawn() -> None:
    layer = sub(noisy)(4, 5)
    before = torch.get_rng_state()
    why_not(layer)
    assert torch.equal(torch.get_rng_state(), before)


def test_layers_of_transformers() -> None:
    falcon = pytest.importorskip("transformers.models.falcon.modeling_falcon")
    for layer in (falcon.FalconLinear(8, 6), falcon.FalconLinear(8, 6, bias=False).bfloat16()):
        assert why_not(layer) == ""
        assert factorize(layer, "svd", 2).stands_for == "FalconLinear"


def test_others_of_transformers_need_no_name_either() -> None:
    esm = pytest.importorskip("transformers.models.esm.modeling_esmfold")
    efficientnet = pytest.importorskip("transformers.models.efficientnet.modeling_efficientnet")
    align = pytest.importorskip("transformers.models.align.modeling_align")
    assert why_not(esm.EsmFoldLinear(8, 6)) == ""
    for kind in (
        efficientnet.EfficientNetDepthwiseConv2d,
        align.AlignVisionDepthwiseConv2d,
    ):
        depthwise = kind(8, kernel_size=3, padding=1)
        assert why_not_rewritten(depthwise) == ""  # a normalisation may go into it
        assert why_not(depthwise).startswith("depthwise convolution (groups=8)")
