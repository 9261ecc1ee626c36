"""cp_conv2d against its definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf_kernels.cp_conv2d import cp_conv2d

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
