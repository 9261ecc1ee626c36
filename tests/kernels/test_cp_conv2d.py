"""cp_conv2d against its definition."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf_kernels._activation import ACTIVATIONS, activate
from tensorlrf_kernels.cp_conv2d import cp_conv2d, reference
from tests.laws.kernels import KernelLaws

GEOMETRY = [
    {},
    {"stride": (2, 1), "padding": (1, 0)},
    {"stride": (1, 3), "padding": (0, 2), "dilation": (2, 1)},
]


def tensors(r: int = 3) -> list[Tensor]:
    """out, in, kh, kw factors, weights and bias."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(5, r), (4, r), (3, r), (2, r), (r,), (5,)]
    return [torch.randn(*size, generator=generator, dtype=torch.float64) for size in sizes]


def image(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("options", GEOMETRY)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_follows_the_definition(options: dict, layout: torch.memory_format) -> None:
    x = image(2, 4, 9, 8).contiguous(memory_format=layout)
    out, inp, kh, kw, weights, bias = tensors()
    kernel = torch.einsum("j,oj,ij,pj,qj->oipq", weights, out, inp, kh, kw)
    y = cp_conv2d(x, out, inp, kh, kw, weights, bias, **options, activation="relu")
    expected = F.conv2d(x, kernel, bias, **options).relu()
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    assert y.is_contiguous(memory_format=layout)


def test_no_images_give_no_images() -> None:
    out, inp, kh, kw, weights, bias = tensors()
    assert cp_conv2d(image(0, 4, 9, 8), out, inp, kh, kw, weights, bias).shape == (0, 5, 7, 7)


def test_gradients() -> None:
    leaves = [t.requires_grad_() for t in (image(1, 4, 4, 3), *tensors(2))]
    assert torch.autograd.gradcheck(
        lambda *t: cp_conv2d(*t, stride=(2, 1), padding=(1, 1), activation="silu"), leaves
    )


# ---- the op --------------------------------------------------------------------------------------

OP = torch.ops.tensorlrf.cp_conv2d


@pytest.mark.parametrize("options", GEOMETRY)
def test_the_op_and_its_gradients(options: dict) -> None:
    pairs = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), **options}
    given = [t.requires_grad_() for t in (image(2, 4, 6, 5), *tensors(2))]
    y = OP(*given, *pairs.values(), "gelu")
    expected = cp_conv2d(*given, **pairs, activation="gelu")
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)

    def run(*leaves: Tensor) -> Tensor:
        return OP(*leaves, *pairs.values(), "gelu")

    assert torch.autograd.gradcheck(run, given)


class TestCPConv2d(KernelLaws):
    """Of the kernel (5, 4, 3, 2), strided along the rows and padded."""

    leads = ((2,), (0,))
    compiled = ((2,), (3,), (1,))
    activations = (None, *ACTIVATIONS)
    remedy = "no second derivative"

    def leaves(self, *lead: int) -> list[Tensor]:
        return [image(*lead, 4, 6, 5), *tensors(2)]

    def run(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        return OP(*operands, (2, 1), (1, 1), (1, 1), activation)  # type: ignore[no-any-return]

    def chain(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        return reference.cp_conv2d(*operands, (2, 1), (1, 1), (1, 1), activation)

    def exact(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        x, out, inp, kh, kw, weights, bias = operands
        kernel = torch.einsum("j,oj,ij,pj,qj->oipq", weights, out, inp, kh, kw)
        return activate(F.conv2d(x, kernel, bias, (2, 1), 1), activation)

    def calls(self) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        yield OP, (*self.drawn(2), (1, 1), (1, 1), (1, 1), "gelu")

    def wrong(self) -> Iterator[tuple[Callable[[], object], str]]:
        x, (out, inp, kh, kw, weights, bias) = image(2, 4, 6, 5), tensors()
        plain = ((1, 1), (0, 0), (1, 1), None)
        for args, words in (
            ((x, out, inp[:3], kh, kw, weights, bias, *plain), "in_factor has shape.*with c = 4"),
            ((x, out, inp, kh[:, :2], kw, weights, bias, *plain), "kh_factor has shape.*r = 3"),
            ((x[0], out, inp, kh, kw, weights, bias, *plain), r"x has shape \(4, 6, 5\); it must"),
            ((x, out, inp, kh, kw, weights.float(), bias, *plain), "weights has dtype"),
            ((x, out, inp, kh, kw, weights, bias, (1, 0), *plain[1:]), r"stride=\(1, 0\) must be"),
            (
                (x[:, :, :2], out, inp, kh, kw, weights, bias, *plain),
                "smaller than the kernel of 3",
            ),
            ((x, out, inp, kh, kw, weights, bias, *plain[:3], "tanh"), "activation='tanh' is unk"),
        ):
            yield partial(OP, *args), words
