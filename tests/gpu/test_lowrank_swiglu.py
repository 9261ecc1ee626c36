"""lowrank_swiglu's kernels on a GPU: against float64, in graphs, compiled, under the sanitizer.

Needs torch, Triton and pytest alone.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tensorlrf_kernels.lowrank_swiglu import lowrank_swiglu, reference
from tests.gpu.sanitizer import assert_sane, needs_sanitizer
from tests.kernels.drawn.lowrank import LAYOUTS, assert_within
from tests.kernels.drawn.swiglu import (
    NAMES,
    GatedOperands,
    backward_bounds,
    draw,
    exact,
    forward_bound,
    gradients,
)

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("ieee_float32", "launches_succeed")]

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SHAPES = (  # M, N, K, G, U
    (1, 1, 1, 1, 1),
    (1, 14336, 4096, 128, 128),
    (16, 1000, 777, 33, 64),
    (128, 768, 3072, 300, 96),
    (129, 65, 70, 17, 5),
    (2048, 1024, 4096, 128, 64),
)


def call(o: GatedOperands) -> Tensor:
    return lowrank_swiglu(*o.each())


def check_forward(o: GatedOperands) -> None:
    # Memory that the op gets was last full of NaN.
    M, N = len(o.x), len(o.gate_left)
    poison = [torch.full((M, N), math.nan, device="cuda", dtype=o.x.dtype) for _ in range(3)]
    del poison
    y = call(o)
    assert y.dtype == o.x.dtype
    assert_within(y, exact(o), forward_bound(o), "y")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_agrees_with_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for biases in (False, True):
        check_forward(draw(*shape, dtype, gate_bias=biases, up_bias=biases, device="cuda"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("M", [20, 300])
def test_any_strides(M: int, layout: str) -> None:
    for dtype in DTYPES:
        check_forward(draw(M, 200, 150, 40, 24, dtype, layout=LAYOUTS[layout], device="cuda"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(300, 200, 150, 40, 24), (2048, 513, 129, 64, 64)])
def test_backward_agrees_with_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    o = draw(*shape, dtype, device="cuda")
    dh = draw(shape[0], 1, shape[1], 1, 1, dtype, device="cuda", seed=3).x
    leaves = o.map(lambda t: t.requires_grad_())
    call(leaves).backward(dh)
    bounds = backward_bounds(o, dh)
    for name, value in gradients(o, dh).items():
        grad = getattr(leaves, name).grad
        # The kept t of half precision is rounded once more than the exact one of the bound.
        assert_within(grad, value, 2 * bounds[name], name)


def test_results_repeat_to_the_bit() -> None:
    for M in (16, 300):
        o = draw(M, 500, 700, 64, 48, torch.bfloat16, device="cuda")
        o = o.map(lambda t: t.requires_grad_())
        runs = []
        for _ in range(3):
            y = call(o)
            runs.append((y, *torch.autograd.grad(y.float().square().sum(), o.each())))
        for again in runs[1:]:
            for a, b in zip(runs[0], again, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_an_empty_batch() -> None:
    o = draw(0, 20, 30, 8, 8, torch.bfloat16, device="cuda").map(lambda t: t.requires_grad_())
    y = call(o)
    assert y.shape == (0, 20)
    y.sum().backward()
    assert o.gate_left.grad is not None
    assert not o.gate_left.grad.any()


@pytest.mark.parametrize("M", [16, 300])
def test_cuda_graphs_replay_on_new_data(M: int) -> None:
    o = draw(M, 500, 700, 64, 48, torch.bfloat16, device="cuda")
    call(o)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = call(o)
    for seed in (1, 2, 3):
        fresh = draw(M, 500, 700, 64, 48, torch.bfloat16, device="cuda", seed=seed)
        for name in NAMES:
            getattr(o, name).copy_(getattr(fresh, name))
        y.fill_(math.nan)
        graph.replay()
        assert_within(y, exact(o), forward_bound(o), "y")


@pytest.mark.parametrize("M", [16, 300])
def test_compiled_in_one_graph(M: int) -> None:
    o = draw(M, 200, 150, 40, 24, torch.bfloat16, device="cuda")
    compiled = torch.compile(lowrank_swiglu, fullgraph=True)
    torch.testing.assert_close(compiled(*o.each()), call(o), rtol=0, atol=0)


def test_autocast_runs_the_kernel_in_half_precision() -> None:
    o = draw(16, 200, 150, 40, 24, torch.float32, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        y = call(o)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, call(o.map(lambda t: t.bfloat16())), rtol=0, atol=0)


def test_neither_intermediates_nor_projections_are_in_memory() -> None:
    M, N, K, R = 8192, 4096, 2048, 64
    o = draw(M, N, K, R, R, torch.bfloat16, device="cuda")
    call(o)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    y = call(o)
    torch.cuda.synchronize()
    beyond = torch.cuda.max_memory_allocated() - before - y.nbytes
    assert beyond < M * R * 2 // 4  # one t alone would take M R values, a projection M N


def test_training_takes_less_memory_than_the_chain() -> None:
    def peak(run) -> int:
        o = draw(8192, 2048, 2048, 64, 64, torch.bfloat16, device="cuda")
        o = o.map(lambda t: t.requires_grad_())
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        y = run(*o.each())
        y.backward(torch.ones_like(y))
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    for run in (lowrank_swiglu, reference.lowrank_swiglu):
        peak(run)
    assert peak(lowrank_swiglu) < peak(reference.lowrank_swiglu)


@needs_sanitizer
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_under_the_sanitizer(tool: str) -> None:
    code = (
        "import torch; from tensorlrf_kernels.lowrank_swiglu import lowrank_swiglu as f\n"
        "for M in (16, 140):\n"
        "    sizes = ((M, 70), (20, 70), (50, 20), (30, 70), (50, 30), (50,), (50,))\n"
        "    t = [torch.randn(s, device='cuda', dtype=torch.float16) for s in sizes]\n"
        "    t = [x.requires_grad_() for x in t]\n"
        "    f(*t).sum().backward()\n"
        "torch.cuda.synchronize()\n"
    )
    assert_sane(code, tool)
