"""The kernels of tucker_conv2d and cp_conv2d on a GPU: against float64, in graphs, compiled.

Needs torch, Triton and pytest alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tensorlrf.nn import FactoredConv2d
from tensorlrf.ops import PathTable
from tensorlrf_kernels.cp_conv2d import cp_conv2d
from tensorlrf_kernels.cp_conv2d import reference as cp_reference
from tensorlrf_kernels.geometry import Geometry
from tensorlrf_kernels.tucker_conv2d import reference as tucker_reference
from tensorlrf_kernels.tucker_conv2d import tucker_conv2d
from tests.gpu.test_on_device import conv_factors
from tests.kernels.drawn import conv as conv_operands
from tests.kernels.drawn import cp_conv as cp_conv_operands
from tests.kernels.drawn.lowrank import assert_within, roundoff

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("ieee_float32", "launches_succeed")]

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LAYERS = (  # batch, channels, rank, image, kernel, geometry
    (1, (1, 1), 1, (1, 1), (1, 1), Geometry()),
    (4, (64, 64), 64, (56, 56), (3, 3), Geometry(padding=(1, 1))),
    (2, (128, 100), 33, (28, 30), (3, 3), Geometry((2, 1), (1, 1), (1, 2))),
    (2, (256, 256), 128, (14, 14), (3, 3), Geometry(padding=(1, 1))),
    (1, (300, 70), 200, (9, 150), (1, 7), Geometry(padding=(0, 3))),
    (3, (17, 19), 5, (40, 23), (7, 5), Geometry((4, 3), (3, 2), (2, 4))),
)
Run = Callable[..., Tensor]


def drawn(op: str, layer: tuple[Any, ...], dtype: torch.dtype, **options: Any) -> Any:
    draw = conv_operands.draw_conv if op == "tucker" else cp_conv_operands.draw_cp
    return draw(*layer, dtype, device="cuda", **options)


def run(op: str, o: Any, activation: str | None) -> Tensor:
    # Memory that the op gets was last full of NaN.
    size = (o.x.shape[0], 512, *o.size)
    poison = [torch.full(size, math.nan, device="cuda", dtype=o.x.dtype) for _ in range(3)]
    del poison
    if op == "tucker":
        return tucker_conv2d(o.x, o.core, o.out_factor, None, o.bias, *o.geometry, activation)
    return cp_conv2d(o.x, *o.factors, o.bias, *o.geometry, activation)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("op", ["tucker", "cp"])
def test_forward_agrees_with_float64(op: str, layer: tuple[Any, ...], dtype: torch.dtype) -> None:
    operands = conv_operands if op == "tucker" else cp_conv_operands
    for activation, layout in ((None, "channels last"), ("gelu", "rows"), ("silu", "gaps")):
        o = drawn(op, layer, dtype, bias=activation is not None, layout=layout)
        y = run(op, o, activation)
        assert y.dtype == dtype
        assert_within(y, operands.exact(o, activation), operands.forward_bound(o, activation), "y")


def leaves(op: str, o: Any) -> list[Tensor]:
    parts = (o.core, o.out_factor) if op == "tucker" else o.factors
    return [o.x, *parts, o.bias]


def definition(op: str, given: Sequence[Tensor], geometry: Geometry, activation: str) -> Tensor:
    if op == "tucker":
        x, core, out, bias = given
        return tucker_reference.tucker_conv2d(
            x, core, out, None, bias, *geometry, activation=activation
        )
    return cp_reference.cp_conv2d(*given, *geometry, activation=activation)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("op", ["tucker", "cp"])
def test_gradients_agree_with_float64(op: str, layer: tuple[Any, ...], dtype: torch.dtype) -> None:
    o = drawn(op, layer, dtype)
    given = [t.requires_grad_() for t in leaves(op, o)]
    y = run(op, o, "silu")
    dy = torch.randn_like(y)
    found = torch.autograd.grad(y, given, dy)
    again = torch.autograd.grad(run(op, o, "silu"), given, dy)
    wide = [t.detach().double().requires_grad_() for t in given]
    z = definition(op, wide, o.geometry, "silu")
    expected = torch.autograd.grad(z, wide, dy.double())
    for got, twice, exact in zip(found, again, expected, strict=True):
        assert torch.equal(got, twice)  # sums in a fixed order
        # Intermediates are rounded to the dtype three times on the longest way.
        off = float((got.double() - exact).norm() / exact.norm().clamp(min=1e-30))
        assert off < 8 * roundoff(dtype) + 1e-5


@pytest.mark.parametrize("op", ["tucker", "cp"])
def test_in_a_cuda_graph_and_compiled(op: str) -> None:
    o = drawn(op, LAYERS[1], torch.bfloat16)
    eager = run(op, o, "gelu")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run(op, o, "gelu")
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(op, o, "gelu")
    captured.fill_(math.nan)
    graph.replay()
    torch.testing.assert_close(captured, eager, rtol=0, atol=0)
    compiled = torch.compile(lambda: run(op, o, "gelu"), fullgraph=True)
    torch.testing.assert_close(compiled(), eager, rtol=0, atol=0)


@pytest.mark.parametrize("op", ["tucker", "cp"])
def test_autocast_and_empty_batches(op: str) -> None:
    o = drawn(op, LAYERS[1], torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        assert run(op, o, None).dtype == torch.bfloat16
    o.x = o.x[:0]
    assert run(op, o, None).shape == (0, 64, 56, 56)


@pytest.mark.parametrize("format", ["svd", "cp", "tucker"])
def test_layers_on_a_gpu_have_the_path(format: str) -> None:
    conv = torch.nn.Conv2d(40, 48, (3, 5), stride=(1, 2), padding=1)
    layer = FactoredConv2d.from_factors(conv_factors()[format].to(torch.float32), like=conv)
    assert "fused" not in layer.paths
    layer = layer.cuda()
    layer.path_table = PathTable.single("fused")
    x = torch.randn(2, 40, 30, 31, device="cuda")
    wide = torch.nn.functional.conv2d(
        x.double(), layer.weight.double(), layer.bias.double(), (1, 2), 1
    )
    for layout in (torch.contiguous_format, torch.channels_last):
        y = layer(x.contiguous(memory_format=layout))
        assert y.is_contiguous(memory_format=layout)
        assert float((y.double() - wide).norm() / wide.norm()) < 1e-5
