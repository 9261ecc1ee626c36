"""tucker_conv2d against its definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf_kernels.tucker_conv2d import tucker_conv2d

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
