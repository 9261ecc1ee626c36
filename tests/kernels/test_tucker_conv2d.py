"""tucker_conv2d against its definition."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf_kernels._activation import ACTIVATIONS, activate
from tensorlrf_kernels.tucker_conv2d import reference, tucker_conv2d
from tests.laws.kernels import KernelLaws

GEOMETRY = [
    {},
    {"stride": (2, 1), "padding": (1, 0)},
    {"stride": (1, 3), "padding": (0, 2), "dilation": (2, 1)},
]
WHOLE = [(), ("out",), ("in",), ("out", "in")]


def tensors(whole: tuple[str, ...] = ()) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """core, out factor, in factor and bias of a (5, 4, 3, 2) kernel; `whole` modes have none."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    core = normal(5 if "out" in whole else 3, 4 if "in" in whole else 2, 3, 2)
    out = None if "out" in whole else normal(5, 3)
    return core, out, None if "in" in whole else normal(4, 2), normal(5)


def image(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("options", GEOMETRY)
@pytest.mark.parametrize("whole", WHOLE)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_follows_the_definition(
    options: dict, whole: tuple[str, ...], layout: torch.memory_format
) -> None:
    x = image(2, 4, 9, 8).contiguous(memory_format=layout)
    core, out, inp, bias = tensors(whole)
    eye = torch.eye(5, dtype=torch.float64)
    kernel = torch.einsum(
        "abpq,oa,ib->oipq", core, eye if out is None else out, eye[:4, :4] if inp is None else inp
    )
    y = tucker_conv2d(x, core, out, inp, bias, **options, activation="gelu")
    expected = F.gelu(F.conv2d(x, kernel, bias, **options))
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    assert y.is_contiguous(memory_format=layout)


def test_no_images_give_no_images() -> None:
    core, out, inp, bias = tensors()
    assert tucker_conv2d(image(0, 4, 9, 8), core, out, inp, bias).shape == (0, 5, 7, 7)


@pytest.mark.parametrize("whole", WHOLE[:3])
def test_gradients(whole: tuple[str, ...]) -> None:
    core, out, inp, bias = tensors(whole)
    leaves = [
        t.requires_grad_() for t in (image(1, 4, 4, 3), core, out, inp, bias) if t is not None
    ]

    def run(*given: Tensor) -> Tensor:
        rest = list(given)
        x, core = rest[:2]
        o = None if out is None else rest[2]
        i = None if inp is None else rest[-2]
        return tucker_conv2d(x, core, o, i, rest[-1], (2, 1), (1, 1), activation="silu")

    assert torch.autograd.gradcheck(run, leaves)


# ---- the op --------------------------------------------------------------------------------------

OP = torch.ops.tensorlrf.tucker_conv2d


def operands() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (2, 2, 6, 5), core, out factor and bias of the SVD form."""
    core, out, _, bias = tensors()
    assert out is not None
    return image(2, 2, 6, 5), core, out, bias


@pytest.mark.parametrize("options", GEOMETRY)
def test_the_op_and_its_gradients(options: dict) -> None:
    pairs = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), **options}
    x, core, out, bias = (t.requires_grad_() for t in operands())
    y = OP(x, core, out, bias, *pairs.values(), "gelu")
    expected = tucker_conv2d(x, core, out, None, bias, **pairs, activation="gelu")
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)

    def run(*given: Tensor) -> Tensor:
        return OP(*given, *pairs.values(), "gelu")

    assert torch.autograd.gradcheck(run, (x, core, out, bias))


class TestTuckerConv2d(KernelLaws):
    """Of the SVD form: core (3, 2, 3, 2) and out factor (5, 3), strided and padded."""

    leads = ((2,), (0,))
    compiled = ((2,), (3,), (1,))
    activations = (None, *ACTIVATIONS)
    remedy = "no second derivative"

    def leaves(self, *lead: int) -> list[Tensor]:
        _, *others = operands()
        return [image(*lead, 2, 6, 5), *others]

    def run(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        return OP(*operands, (2, 1), (1, 1), (1, 1), activation)  # type: ignore[no-any-return]

    def chain(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        x, core, out, bias = operands
        return reference.tucker_conv2d(x, core, out, None, bias, (2, 1), (1, 1), (1, 1), activation)

    def exact(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        x, core, out, bias = operands
        kernel = torch.einsum("ripq,or->oipq", core, out)
        return activate(F.conv2d(x, kernel, bias, (2, 1), 1), activation)

    def calls(self) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        yield OP, (*self.drawn(2), (1, 1), (1, 1), (1, 1), "gelu")

    def wrong(self) -> Iterator[tuple[Callable[[], object], str]]:
        x, core, out, bias = operands()
        plain = ((1, 1), (0, 0), (1, 1), None)
        for args, words in (
            ((x, core[:, :1], out, bias, *plain), "core has shape.*with c = 2 as x has it"),
            ((x[0], core, out, bias, *plain), r"x has shape \(2, 6, 5\); it must be \(b, c, h, w"),
            ((x, core, out.float(), bias, *plain), "out_factor has dtype"),
            ((x, core, out, bias, (0, 1), *plain[1:]), r"stride=\(0, 1\) must be two ints of at"),
            ((x, core, out, bias, (1, 1), (-1, 0), (1, 1), None), r"padding=\(-1, 0\)"),
            ((x[:, :, :2], core, out, bias, *plain), "smaller than the kernel of 3 x 2.*pad more"),
            ((x, core, out, bias, *plain[:3], "tanh"), "activation='tanh' is unknown"),
        ):
            yield partial(OP, *args), words
