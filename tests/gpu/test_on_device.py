"""What runs on a GPU, run there; the same checks run on the CPU in the default suite.

Needs torch and pytest alone, so that a GPU machine can run it as it is.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tensorlrf import ops
from tensorlrf.decomposition import cp, svd, tucker
from tensorlrf.factors import CPFactors, Factors, LowRank, TuckerFactors
from tensorlrf.nn import FactoredConv2d, FactoredLinear

pytestmark = pytest.mark.usefixtures("ieee_float32")

# Relative Frobenius error against float64 that each dtype may show (tf32 off).
BOUND = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def draw(seed: int, *size: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*size, generator=g, dtype=torch.float64)


def conv_factors() -> dict[str, Factors]:
    """Kernels (48, 40, 3, 5) with entries near one."""
    O, I, kh, kw, r = 48, 40, 3, 5, 24
    scale = 1 / math.sqrt(r)
    return {
        "svd": LowRank(draw(0, O, r) * scale, draw(1, r, I * kh * kw), (O, I, kh, kw)),
        "cp": CPFactors(
            torch.full((r,), scale, dtype=torch.float64),
            tuple(draw(k, n, r) for k, n in enumerate((O, I, kh, kw))),
        ),
        "tucker": TuckerFactors(
            draw(0, r, 16, kh, kw) / (4 * math.sqrt(r)), (draw(1, O, r), draw(2, I, 16)), (0, 1)
        ),
    }


def linear_factors() -> dict[str, Factors]:
    """Weights (96, 72) with entries near one."""
    m, n, r = 96, 72, 16
    return {
        "svd": LowRank(draw(0, m, r) / 4, draw(1, r, n)),
        "cp": CPFactors(
            torch.full((r,), 0.25, dtype=torch.float64), (draw(0, m, r), draw(1, n, r))
        ),
        "tucker": TuckerFactors(draw(0, r, r) / 16, (draw(1, m, r), draw(2, n, r))),
    }


CONVS = [(name, path) for name, f in conv_factors().items() for path in ops.conv2d_paths(f)]
LINEARS = [(name, path) for name, f in linear_factors().items() for path in ops.linear_paths(f)]


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.double().cpu() - expected).norm() / expected.norm())


def dtypes(device: torch.device) -> list[torch.dtype]:
    # float16 convolutions of a CPU accumulate in float16, which no bound on the inputs' rounding
    # covers; on a GPU they accumulate in float32.
    if device.type == "cuda":
        return [torch.float64, torch.float32, torch.float16, torch.bfloat16]
    return [torch.float64, torch.float32, torch.bfloat16]


@pytest.mark.parametrize(("name", "path"), CONVS)
def test_conv2d_agrees_with_float64(device: torch.device, name: str, path: str) -> None:
    f = conv_factors()[name]
    x, bias = draw(7, 3, 40, 17, 19), draw(8, 48)
    options = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
    for dtype in dtypes(device):
        lower = f.to(device, dtype)
        xs, bs = x.to(device, dtype), bias.to(device, dtype)
        expected = torch.nn.functional.conv2d(
            xs.double().cpu(),
            lower.to("cpu", torch.float64).to_dense(),
            bs.double().cpu(),
            **options,
        )
        for layout in (torch.contiguous_format, torch.channels_last):
            y = ops.conv2d(xs.contiguous(memory_format=layout), lower, bs, **options, path=path)
            assert (y.dtype, y.device.type) == (dtype, device.type)
            # Each factored product rounds its intermediate once more than dense does.
            assert relative(y, expected) < 2 * BOUND[dtype], (dtype, layout)


@pytest.mark.parametrize(("name", "path"), LINEARS)
def test_linear_agrees_with_float64(device: torch.device, name: str, path: str) -> None:
    f = linear_factors()[name]
    x, bias = draw(7, 5, 33, 72), draw(8, 96)
    for dtype in dtypes(device):
        lower = f.to(device, dtype)
        xs, bs = x.to(device, dtype), bias.to(device, dtype)
        dense = lower.to("cpu", torch.float64).to_dense()
        expected = torch.nn.functional.linear(xs.double().cpu(), dense, bs.double().cpu())
        y = ops.linear(xs, lower, bs, path=path)
        assert (y.dtype, y.device.type) == (dtype, device.type)
        assert relative(y, expected) < 2 * BOUND[dtype], dtype


def test_gradients_agree_with_float64(device: torch.device) -> None:
    for f in conv_factors().values():
        conv = torch.nn.Conv2d(40, 48, (3, 5), padding=1).to(device, torch.float64)
        exact = FactoredConv2d.from_factors(f, like=conv)
        single = FactoredConv2d.from_factors(f, like=conv).to(torch.float32)
        x = draw(3, 2, 40, 9, 9).to(device)
        exact(x).square().sum().backward()
        single(x.float()).square().sum().backward()
        for p, q in zip(single.parameters(), exact.parameters(), strict=True):
            assert p.grad is not None
            assert q.grad is not None
            assert relative(p.grad, q.grad.cpu()) < 10 * BOUND[torch.float32]


def test_decompositions_stay_on_the_device(device: torch.device) -> None:
    planted = conv_factors()["cp"].to(device, torch.float32)
    weight = planted.to_dense()
    for f in (
        svd(weight, 8, random_state=0),
        tucker(weight, (24, 24), modes=(0, 1), random_state=0),
        cp(weight, 24, n_iter_max=30, random_state=0),
        cp(weight, 24, n_iter_max=5, solver="cprand", random_state=0),
    ):
        assert f.device.type == device.type
        assert f.rel_error(weight) < 1.0
    assert tucker(weight, (24, 24), modes=(0, 1)).rel_error(weight) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["svd", "cp", "tucker"])
def test_forward_does_not_synchronise(name: str) -> None:
    conv = torch.nn.Conv2d(40, 48, (3, 5), padding=1).cuda().eval()
    layer = FactoredConv2d.from_factors(conv_factors()[name].to("cuda", torch.float32), like=conv)
    x = draw(0, 2, 40, 12, 12).to("cuda", torch.float32)
    layer(x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["svd", "cp", "tucker"])
def test_captured_in_a_cuda_graph(name: str) -> None:
    linear = torch.nn.Linear(72, 96).cuda().half().eval()
    factors = linear_factors()[name].to("cuda", torch.float16)
    layer = FactoredLinear.from_factors(factors, like=linear)
    x = draw(0, 64, 72).to("cuda", torch.float16)
    with torch.no_grad():
        expected = layer(x)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            layer(x)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(x)
        y.fill_(math.nan)
        graph.replay()
    torch.testing.assert_close(y, expected, rtol=0, atol=0)


@pytest.mark.gpu
def test_compiled_on_the_gpu_in_one_graph() -> None:
    conv = torch.nn.Conv2d(40, 48, (3, 5), padding=1).cuda().eval()
    for f in conv_factors().values():
        layer = FactoredConv2d.from_factors(f.to("cuda", torch.float32), like=conv)
        x = draw(0, 2, 40, 12, 12).to("cuda", torch.float32)
        compiled = torch.compile(layer, fullgraph=True)
        with torch.no_grad():
            expected = layer(x).double().cpu()
            assert relative(compiled(x), expected) < 2 * BOUND[torch.float32]
