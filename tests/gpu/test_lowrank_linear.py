"""lowrank_linear's kernels on a GPU: against float64, in graphs, compiled, under the sanitizer.

Needs torch, Triton and pytest alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tensorlrf import ops
from tensorlrf.factors import LowRank
from tensorlrf.nn import FactoredLinear
from tensorlrf_kernels import _counters
from tensorlrf_kernels._activation import ACTIVATIONS
from tensorlrf_kernels.lowrank_linear import fused, lowrank_linear, reference
from tensorlrf_kernels.lowrank_linear.launch import forward
from tests.gpu.sanitizer import assert_sane, needs_sanitizer
from tests.kernels.drawn.lowrank import (
    LAYOUTS,
    Operands,
    assert_within,
    backward_bounds,
    draw,
    exact,
    forward_bound,
    gradients,
)

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("ieee_float32", "launches_succeed")]

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SHAPES = (  # M, N, K, R
    (1, 1, 1, 1),
    (1, 4096, 4096, 64),
    (16, 4096, 4096, 512),
    (7, 333, 1001, 33),
    (33, 129, 65, 300),
    (128, 768, 3072, 96),
    (129, 65, 70, 17),
    (200, 3072, 768, 256),
    (1000, 257, 129, 100),
    (2048, 1024, 4096, 128),
)


def check_forward(o: Operands, activation: str | None) -> None:
    # Memory that the op gets was last full of NaN.
    M, N = len(o.x), len(o.left)
    poison = [torch.full((M, n), math.nan, device="cuda", dtype=o.x.dtype) for n in (N, N, N)]
    del poison
    y = lowrank_linear(*o.each(), activation)
    assert y.dtype == o.x.dtype
    assert_within(y, exact(o, activation), forward_bound(o, activation), "y")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_agrees_with_float64(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    for terms, activation in ((False, None), (True, "gelu")):
        check_forward(draw(*shape, dtype, terms=terms, device="cuda"), activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("M", [20, 300])
def test_every_activation(M: int, activation: str) -> None:
    for dtype in DTYPES:
        check_forward(draw(M, 200, 150, 40, dtype, device="cuda"), activation)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("M", [20, 300])
def test_any_strides(M: int, layout: str) -> None:
    for dtype in DTYPES:
        check_forward(draw(M, 200, 150, 40, dtype, layout=LAYOUTS[layout], device="cuda"), "silu")


@pytest.mark.parametrize("M", [20, 300])
def test_tf32_by_torchs_switch(M: int) -> None:
    o = draw(M, 200, 1500, 40, torch.float32, device="cuda")
    right = exact(o, None)
    single = (lowrank_linear(*o.each()).double().cpu() - right).norm() / right.norm()
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    tf32 = (lowrank_linear(*o.each()).double().cpu() - right).norm() / right.norm()
    assert single < 1e-6
    assert 1e-5 < tf32 < 1e-3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("shape", [(300, 200, 150, 40), (2048, 513, 129, 100), (70, 33, 65, 5)])
def test_backward_agrees_with_float64(
    shape: tuple[int, int, int, int], activation: str | None, dtype: torch.dtype
) -> None:
    o = draw(*shape, dtype, device="cuda")
    dy = draw(shape[0], shape[1], 1, 1, dtype, device="cuda", seed=1).residual
    assert dy is not None
    leaves = o.map(lambda t: t.requires_grad_())
    lowrank_linear(*leaves.each(), activation).backward(dy)
    expected = gradients(o, dy, activation)
    bounds = backward_bounds(o, dy, activation)
    # The kept t of half precision is rounded once more than the exact one that the bound is for.
    for name, value in expected.items():
        assert_within(getattr(leaves, name).grad, value, 2 * bounds[name], name)


def test_results_repeat_to_the_bit() -> None:
    for M in (16, 300):
        o = draw(M, 500, 700, 64, torch.bfloat16, device="cuda").map(lambda t: t.requires_grad_())
        runs = []
        for _ in range(3):
            y = lowrank_linear(*o.each(), "gelu")
            runs.append((y, *torch.autograd.grad(y.float().square().sum(), (o.x, o.right, o.left))))
        for again in runs[1:]:
            for a, b in zip(runs[0], again, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_an_empty_batch() -> None:
    o = draw(0, 20, 30, 8, torch.bfloat16, device="cuda").map(lambda t: t.requires_grad_())
    y = lowrank_linear(*o.each(), "silu")
    assert y.shape == (0, 20)
    y.sum().backward()
    assert o.left.grad is not None
    assert not o.left.grad.any()


@pytest.mark.parametrize("M", [20, 300])
def test_float16_holds_an_intermediate_beyond_its_range(M: int) -> None:
    o = draw(M, 200, 150, 40, torch.float16, device="cuda")
    o.x *= 300
    o.right *= 300
    o.left *= 2.0**-14
    assert (o.x.double() @ o.right.double().T).abs().max() > torch.finfo(torch.float16).max
    check_forward(o, "silu")


@pytest.mark.parametrize("M", [3, 130])
def test_offsets_beyond_31_bits(M: int) -> None:
    o = draw(M, 20, 40, 16, torch.float16, device="cuda")
    step = 2**31 // (M - 1) + 2
    far = torch.empty((M - 1) * step + 40, dtype=torch.float16, device="cuda")
    x = far.as_strided((M, 40), (step, 1))
    x.copy_(o.x)
    check_forward(replace(o, x=x), "gelu")
    across = far.as_strided((M, 40), (1, (far.numel() - M) // 39))
    across.copy_(o.x)
    check_forward(replace(o, x=across), "gelu")
    del far
    big = draw(1, 1, 1, 1, torch.float16, device="cuda")
    rows = 2**31 // 4096 + 3  # y has more than 2^31 elements
    x = torch.zeros(rows, 16, dtype=torch.float16, device="cuda")
    x[-2:] = 1.0
    y = lowrank_linear(x, big.right.expand(16, 16), torch.ones(4096, 16, device="cuda").half())
    assert not y[:-2].any()
    assert bool((y[-2:] == y[-1, -1]).all())
    assert bool(y[-1, -1] != 0)


def test_two_launches_give_what_one_gives(refuse_cooperation: Callable[[], None]) -> None:
    o = draw(16, 500, 700, 64, torch.bfloat16, device="cuda")
    one = lowrank_linear(*o.each())
    refuse_cooperation()
    two = lowrank_linear(*o.each())
    torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_streams_side_by_side_do_not_share_counters() -> None:
    o = draw(16, 4096, 4096, 64, torch.bfloat16, device="cuda", terms=False)
    expected = lowrank_linear(*o.each())
    streams = [torch.cuda.Stream() for _ in range(4)]
    results: list[Tensor] = []
    torch.cuda.synchronize()
    for _ in range(50):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(lowrank_linear(*o.each()))
    torch.cuda.synchronize()
    for y in results:
        torch.testing.assert_close(y, expected, rtol=0, atol=0)
    assert not any(bool(slot.any()) for slot in _counters._of_stream.values())


@pytest.mark.parametrize("M", [16, 300])
def test_cuda_graphs_replay_on_new_data(M: int) -> None:
    o = draw(M, 500, 700, 64, torch.bfloat16, device="cuda")
    lowrank_linear(*o.each(), "gelu")
    graphs = []
    for _ in range(2):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = lowrank_linear(*o.each(), "gelu")
        graphs.append((graph, y))
    for seed in (1, 2, 3):
        fresh = draw(M, 500, 700, 64, torch.bfloat16, device="cuda", seed=seed)
        for mine, new in zip(o.each(), fresh.each(), strict=True):
            assert mine is not None
            assert new is not None
            mine.copy_(new)
        for graph, y in graphs:
            y.fill_(math.nan)
            graph.replay()
            assert_within(y, exact(o, "gelu"), forward_bound(o, "gelu"), "y")


def layer_of(o: Operands, path: str) -> FactoredLinear:
    layer = FactoredLinear(LowRank(o.left, o.right), o.bias)
    layer.path_table = ops.PathTable.single(path)
    return layer


@pytest.mark.parametrize("M", [16, 300])
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_in_one_graph(M: int, mode: str) -> None:
    o = draw(M, 200, 150, 40, torch.bfloat16, device="cuda")
    layer = layer_of(o, "fused")
    compiled = torch.compile(layer, fullgraph=True, mode=mode)
    for _ in range(3):
        with torch.no_grad():
            y = compiled(o.x).clone()
        torch.testing.assert_close(y, layer(o.x).detach(), rtol=0, atol=0)
    if mode == "default":
        x = o.x.clone().requires_grad_()
        compiled(x).float().square().sum().backward()
        got = [x.grad, layer.left.grad]
        x.grad = None
        layer.zero_grad()
        layer(x).float().square().sum().backward()
        for a, b in zip(got, [x.grad, layer.left.grad], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


def test_autocast_runs_the_kernel_in_half_precision() -> None:
    o = draw(16, 200, 150, 40, torch.float32, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        y = lowrank_linear(*o.each(), "silu")
    half = o.map(lambda t: t.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, lowrank_linear(*half.each(), "silu"), rtol=0, atol=0)


def test_neither_intermediate_nor_weight_is_in_memory() -> None:
    M, N, K, R = 8192, 2048, 4096, 64
    o = draw(M, N, K, R, torch.bfloat16, device="cuda", terms=False)
    lowrank_linear(*o.each())
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    y = lowrank_linear(*o.each())
    torch.cuda.synchronize()
    beyond = torch.cuda.max_memory_allocated() - before - y.nbytes
    assert beyond < M * R * 2 // 4  # t alone would take M R values


def test_training_takes_less_memory_than_the_chain() -> None:
    M, N, K, R = 8192, 2048, 2048, 64

    def peak(run) -> int:
        o = draw(M, N, K, R, torch.bfloat16, device="cuda").map(lambda t: t.requires_grad_())
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        y = run(*o.each(), "gelu")
        y.backward(torch.ones_like(y))
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    for run in (lowrank_linear, reference.lowrank_linear):
        peak(run)
    assert peak(lowrank_linear) < peak(reference.lowrank_linear)


def test_it_does_not_synchronise() -> None:
    o = draw(16, 200, 150, 40, torch.bfloat16, device="cuda")
    lowrank_linear(*o.each())
    torch.cuda.set_sync_debug_mode("error")
    try:
        lowrank_linear(*o.each())
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_operands_on_two_devices_are_named() -> None:
    o = draw(16, 200, 150, 40, torch.bfloat16, device="cuda")
    with pytest.raises(ValueError, match="right is on cpu, x on cuda"):
        lowrank_linear(o.x, o.right.cpu(), o.left)


def test_layers_move_to_the_gpu_and_find_their_kernel() -> None:
    o = draw(16, 4096, 4096, 64, torch.bfloat16)
    layer = FactoredLinear(LowRank(o.left, o.right), o.bias)
    assert layer.paths == ("dense", "chain")
    layer.cuda()
    assert layer.paths == ("dense", "chain", "fused")
    assert layer.path_table.lookup(16) == "fused"
    timings = ops.time_paths(layer.factors, o.x.cuda(), o.bias.cuda(), seconds=0.1)
    assert set(timings.samples) == {"dense", "chain", "fused"}


def test_the_heuristic_launches_what_was_asked() -> None:
    o = draw(16, 4096, 4096, 64, torch.bfloat16, device="cuda")
    problem = fused.problem_of(o.x, o.right, o.left)
    from tensorlrf_kernels.chips import chip_of

    config = forward(problem, chip_of(o.x.device))
    assert config is not None
    assert config.cooperative
    limit = torch.cuda.get_device_properties(0).multi_processor_count
    assert config.programs <= 2 * limit


@needs_sanitizer
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_under_the_sanitizer(tool: str) -> None:
    code = (
        "import torch; from tensorlrf_kernels.lowrank_linear import lowrank_linear as f\n"
        "for M in (16, 140):\n"
        "    sizes = ((M, 70), (20, 70), (50, 20), (50,), (M, 50))\n"
        "    t = [torch.randn(s, device='cuda', dtype=torch.float16) for s in sizes]\n"
        "    t = [x.requires_grad_() for x in t]\n"
        "    f(*t, 'gelu').sum().backward()\n"
        "torch.cuda.synchronize()\n"
    )
    assert_sane(code, tool)
