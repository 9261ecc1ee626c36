"""tt_linear on a GPU: the Kronecker kernel on the halves, and one library product a core.

Needs torch, Triton and pytest alone.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tensorlrf.factors import TTMatrix
from tensorlrf.nn import FactoredLinear
from tensorlrf.ops import PathTable
from tensorlrf_kernels.tt_linear import reference, tt_linear
from tensorlrf_kernels.tt_linear.launch import served_cut
from tests.kernels.drawn.lowrank import roundoff

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("ieee_float32", "launches_succeed")]

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
TRAINS = {  # rows, columns and ranks of the cores: the first three by the kernel
    "8^4, rank 8": ((8,) * 4, (8,) * 4, (8, 8, 8)),
    "uneven": ((5, 7, 9, 4), (4, 6, 6, 11), (3, 10, 7)),
    "two cores": ((64, 48), (32, 80), (16,)),
    "rank 24": ((8,) * 4, (8,) * 4, (8, 24, 8)),
    "one core": ((40,), (24,), ()),
}


def drawn(name: str, dtype: torch.dtype, *lead: int) -> tuple[Tensor, list[Tensor], Tensor]:
    """x, cores and bias, so that every product stays near one."""
    rows, columns, ranks = TRAINS[name]
    ends = (1, *ranks, 1)
    cores = [
        torch.randn(ends[k], m, n, ends[k + 1], device="cuda") / math.sqrt(n * ends[k])
        for k, (m, n) in enumerate(zip(rows, columns, strict=True))
    ]
    x = torch.randn(*lead, math.prod(columns), device="cuda", dtype=dtype)
    bias = torch.randn(math.prod(rows), device="cuda", dtype=dtype)
    return x, [core.to(dtype) for core in cores], bias


def off(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).norm() / exact.norm().clamp(min=1e-30))


def bound(dtype: torch.dtype) -> float:
    # Two merged factors, the state between four products and the result: seven roundings at the
    # most; float32 sums in the order of the tiles besides.
    return 8 * roundoff(dtype) + 1e-5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", TRAINS)
def test_values_and_gradients_agree_with_float64(name: str, dtype: torch.dtype) -> None:
    for lead in ((1,), (3, 5), (300,)):
        x, cores, bias = drawn(name, dtype, *lead)
        leaves = [t.requires_grad_() for t in (x, bias, *cores)]
        y = tt_linear(x, cores, bias, None, "silu")
        dy = torch.randn_like(y)
        found = torch.autograd.grad(y, leaves, dy)
        again = torch.autograd.grad(tt_linear(x, cores, bias, None, "silu"), leaves, dy)
        wide = [t.detach().double().requires_grad_() for t in leaves]
        z = F.silu(F.linear(wide[0], TTMatrix(tuple(wide[2:])).to_dense(), wide[1]))
        expected = torch.autograd.grad(z, wide, dy.double())
        assert off(y, z) < bound(dtype)
        for got, twice, exact in zip(found, again, expected, strict=True):
            assert torch.equal(got, twice)  # sums in a fixed order
            assert off(got, exact) < 2 * bound(dtype)


def test_which_trains_the_kernel_takes() -> None:
    taken = {}
    for name in TRAINS:
        _, cores, _ = drawn(name, torch.bfloat16, 1)
        taken[name] = served_cut(reference.sizes_of(cores), 300, torch.bfloat16) is not None
    assert taken == dict(zip(TRAINS, (True, True, True, False, False), strict=True))


def test_in_a_cuda_graph_compiled_and_by_autocast() -> None:
    x, cores, bias = drawn("8^4, rank 8", torch.bfloat16, 256)

    def run() -> Tensor:
        return tt_linear(x, cores, bias, None, "gelu")

    eager = run()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    captured.fill_(math.nan)
    graph.replay()
    torch.testing.assert_close(captured, eager, rtol=0, atol=0)
    compiled: Any = torch.compile(run, fullgraph=True)
    assert off(compiled(), eager.double()) < bound(torch.bfloat16)  # the merges may be fused
    single = [t.float() for t in (x, bias, *cores)]
    with torch.autocast("cuda", torch.bfloat16):
        y = tt_linear(single[0], single[2:], single[1], None, "gelu")
    assert y.dtype is torch.bfloat16
    assert off(y, eager.double()) < bound(torch.bfloat16)


def test_a_step_keeps_less_than_the_dense_layer_holds() -> None:
    x, cores, _ = drawn("8^4, rank 8", torch.bfloat16, 4096)
    for core in cores:
        core.requires_grad_()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    y = tt_linear(x, cores)
    # The output, and the merged factors, 16 x 64 x 64 numbers at the most each.
    assert torch.cuda.memory_allocated() - before <= y.numel() * 2 + 2**20


def test_a_layer_on_a_gpu_has_the_path() -> None:
    _, cores, _ = drawn("uneven", torch.float32, 1)
    factors = TTMatrix(tuple(core.cpu() for core in cores), (1250, 1500))  # padded in both
    layer = FactoredLinear.from_factors(factors, like=nn.Linear(1500, 1250))
    assert "fused" not in layer.paths
    layer = layer.cuda()
    layer.path_table = PathTable.single("fused")
    x = torch.randn(7, 1500, device="cuda")
    wide = F.linear(x.double(), layer.weight.double(), layer.bias.double())
    assert off(layer(x), wide) < bound(torch.float32)
