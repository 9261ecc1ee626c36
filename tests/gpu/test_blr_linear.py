"""blr_linear's kernels on a GPU: against float64, in graphs, compiled, under the sanitizer.

Needs torch, Triton and pytest alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tensorlrf_kernels import _counters, launches
from tensorlrf_kernels._activation import ACTIVATIONS
from tensorlrf_kernels.blr_linear import fused, tables
from tensorlrf_kernels.blr_linear.forms import SLOT
from tensorlrf_kernels.blr_linear.launch import forward
from tensorlrf_kernels.chips import chip_of
from tests.gpu.sanitizer import assert_sane, needs_sanitizer
from tests.kernels.drawn.blr import (
    NAMES,
    BlockOperands,
    backward_bounds,
    draw_blast,
    draw_monarch,
    draw_tiling,
    exact,
    forward_bound,
    gradients,
    grid,
    tree,
)
from tests.kernels.drawn.lowrank import LAYOUTS, assert_within

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("ieee_float32", "launches_succeed")]

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MIXED = [(0, 0, 120, 240, 57), (0, 240, 130, 60, None), (120, 0, 250, 120, 0),
         (120, 120, 250, 120, 40), (130, 240, 240, 60, 13)]  # fmt: skip
FORMS: dict[str, Callable[[int], BlockOperands]] = {
    "even": lambda M: draw_tiling(M, grid([128] * 4, [64] * 3, lambda i, j: 16), (512, 192)),
    "wide": lambda M: draw_tiling(M, grid([1024] * 2, [1024] * 2, lambda i, j: 64), (2048, 2048)),
    "ragged": lambda M: draw_tiling(
        M, grid([100, 130, 77], [90, 150, 61], lambda i, j: 7 * i + 5 * j + 3), (307, 301)
    ),
    "mixed": lambda M: draw_tiling(M, MIXED, (370, 300)),
    "tree": lambda M: draw_tiling(M, tree(400, 368, 3, 20), (400, 368)),
    "dense": lambda M: draw_tiling(M, grid([64] * 2, [80] * 2, lambda i, j: None), (128, 160)),
    "monarch": lambda M: draw_monarch(M, (32, 16), 1, (512, 512)),
    "monarch of rank 2": lambda M: draw_monarch(M, (20, 12), 2, (301, 250)),
    "monarch of rank 8": lambda M: draw_monarch(M, (16, 12), 8, (301, 250)),
    "blast": lambda M: draw_blast(M, (4, 5), 70, (301, 250)),
}


def on_gpu(o: BlockOperands, dtype: torch.dtype) -> BlockOperands:
    return o.map(lambda t: t.to("cuda", dtype))


def check_forward(o: BlockOperands, activation: str | None) -> None:
    # Memory that the op gets was last full of NaN.
    size = (len(o.x), max(*o.form.shape, o.form.left.slots))
    poison = [torch.full(size, math.nan, device="cuda") for _ in range(3)]
    del poison
    y = o.run(activation)
    assert y.dtype == o.x.dtype
    assert_within(y, exact(o, activation), forward_bound(o, activation), "y")


def is_served(o: BlockOperands) -> bool:
    config = forward(fused.problem_of(o.form, o.x), chip_of(o.x.device))
    return config is not None and fused._worthwhile(o.form, config, False, o.x.device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_forward_agrees_with_float64(form: str, dtype: torch.dtype) -> None:
    for M in (1, 16, 33, 128, 129, 1000):
        o = on_gpu(FORMS[form](M), dtype)
        assert is_served(o), "the library would be tested"
        check_forward(replace(o, bias=None), None)
        check_forward(o, "gelu")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("form", ["mixed", "monarch", "blast"])
def test_every_activation(form: str, activation: str) -> None:
    for M in (20, 300):
        check_forward(on_gpu(FORMS[form](M), torch.bfloat16), activation)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", ["mixed", "monarch", "blast"])
def test_any_strides(form: str, layout: str) -> None:
    for M in (20, 300):
        for dtype in DTYPES:
            o = on_gpu(FORMS[form](M), dtype)
            check_forward(replace(o, x=LAYOUTS[layout](o.x)), "silu")


def test_tf32_by_torchs_switch() -> None:
    for M in (20, 300):
        o = on_gpu(FORMS["wide"](M), torch.float32)
        right = exact(o, None)
        single = (o.run().double().cpu() - right).norm() / right.norm()
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        tf32 = (o.run().double().cpu() - right).norm() / right.norm()
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        # Ten bits of mantissa against twenty-three, summed over some hundred terms.
        assert single < 1e-6
        assert 1e-5 < tf32 < 1e-3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", [None, "gelu", "relu"])
@pytest.mark.parametrize("form", FORMS)
def test_backward_agrees_with_float64(
    form: str, activation: str | None, dtype: torch.dtype
) -> None:
    o = on_gpu(FORMS[form](500), dtype)
    generator = torch.Generator().manual_seed(1)
    dy = torch.randn(500, o.form.shape[0], generator=generator).to("cuda", dtype)
    leaves = o.map(lambda t: t.requires_grad_())
    leaves.run(activation).backward(dy)
    expected, bounds = gradients(o, dy, activation), backward_bounds(o, dy, activation)
    for name in NAMES:
        leaf = getattr(leaves, name)
        if leaf is not None:
            assert_within(leaf.grad, expected[name], bounds[name], name)


def test_results_repeat_to_the_bit() -> None:
    for form in ("mixed", "monarch", "blast"):
        for M in (16, 3000):
            o = on_gpu(FORMS[form](M), torch.bfloat16).map(lambda t: t.requires_grad_())
            runs = []
            for _ in range(3):
                y = o.run("gelu")
                leaves = [t for t in o.tensors if t is not None]
                runs.append((y, *torch.autograd.grad(y.float().square().sum(), leaves)))
            for again in runs[1:]:
                for a, b in zip(runs[0], again, strict=True):
                    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_an_empty_batch() -> None:
    o = on_gpu(FORMS["mixed"](0), torch.bfloat16).map(lambda t: t.requires_grad_())
    y = o.run("silu")
    assert y.shape == (0, 370)
    y.sum().backward()
    assert o.left.grad is not None
    assert not o.left.grad.any()


@pytest.mark.parametrize("M", [20, 300])
def test_float16_holds_an_intermediate_beyond_its_range(M: int) -> None:
    for form in ("mixed", "blast", "monarch"):
        o = FORMS[form](M)
        o.x *= 300
        o.right *= 300
        o.left *= 2.0**-14
        check_forward(on_gpu(o, torch.float16), "silu")


def test_chunks_of_rows_do_not_show() -> None:
    o = on_gpu(draw_tiling(9000, grid([256] * 4, [256] * 4, lambda i, j: 64), (1024, 1024)),
               torch.bfloat16)  # fmt: skip
    config = forward(fused.problem_of(o.form, o.x), chip_of(o.x.device))
    assert config is not None
    results = []
    for mib in (1, 2**16):
        one = replace(config, blocks={**config.blocks, "MIB": mib})
        calls, y = fused.forward_calls(one, o.form, o.x, o.panels, o.bias)
        launches.launch(calls)
        results.append(y)
        assert (len(calls) == 2) == (mib > 1)
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_offsets_beyond_31_bits() -> None:
    for M in (3, 130):
        o = on_gpu(FORMS["mixed"](M), torch.float16)
        step = 2**31 // (M - 1) + 2
        far = torch.empty((M - 1) * step + 300, dtype=torch.float16, device="cuda")
        x = far.as_strided((M, 300), (step, 1))
        x.copy_(o.x)
        check_forward(replace(o, x=x), "gelu")
        del far, x
    rows = 2**31 // 512 + 3  # y has more than 2^31 elements
    o = on_gpu(FORMS["even"](1), torch.float16)
    x = torch.zeros(rows, 192, dtype=torch.float16, device="cuda")
    x[-1:] = o.x
    y = replace(o, x=x, bias=None).run()
    assert not y[:-1].any()
    last = replace(o, bias=None)
    assert_within(y[-1:], exact(last, None), forward_bound(last, None), "y")


def test_two_launches_give_what_one_gives(refuse_cooperation: Callable[[], None]) -> None:
    o = on_gpu(FORMS["wide"](16), torch.bfloat16)
    one = o.run()
    refuse_cooperation()
    two = o.run()
    torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_streams_side_by_side_do_not_share_counters() -> None:
    o = on_gpu(FORMS["wide"](16), torch.bfloat16)
    expected = o.run()
    streams = [torch.cuda.Stream() for _ in range(4)]
    results = []
    torch.cuda.synchronize()
    for _ in range(50):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(o.run())
    torch.cuda.synchronize()
    for y in results:
        torch.testing.assert_close(y, expected, rtol=0, atol=0)
    assert not any(bool(slot.any()) for slot in _counters._of_stream.values())


@pytest.mark.parametrize("form", ["mixed", "monarch", "blast"])
@pytest.mark.parametrize("M", [16, 300])
def test_cuda_graphs_replay_on_new_data(M: int, form: str) -> None:
    o = on_gpu(FORMS[form](M), torch.bfloat16)
    o.run("gelu")
    graphs = []
    for _ in range(2):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = o.run("gelu")
        graphs.append((graph, y))
    # A graph reads its tables for as long as it lives, whatever else comes and goes.
    tables._made.clear()
    for scale in (1.0, -0.5, 2.0):
        o.x.mul_(scale)
        for graph, y in graphs:
            y.fill_(math.nan)
            graph.replay()
            assert_within(y, exact(o, "gelu"), forward_bound(o, "gelu"), "y")


def test_a_graph_without_warm_up_runs_the_library() -> None:
    blocks = grid([48] * 3, [64] * 3, lambda i, j: 16)
    o = on_gpu(draw_tiling(300, blocks, (144, 192)), torch.bfloat16)
    # cuBLAS has its own first time.
    o.chain()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    said = pytest.warns(RuntimeWarning, match="no call of these sizes came before")
    with said, torch.cuda.graph(graph):
        y = o.run()
    graph.replay()
    assert_within(y, exact(o, None), forward_bound(o, None), "y")


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_in_one_graph(mode: str) -> None:
    for form in ("mixed", "monarch"):
        o = on_gpu(FORMS[form](300), torch.bfloat16)
        torch._dynamo.reset()

        def run(x: torch.Tensor, o: BlockOperands = o) -> torch.Tensor:
            return replace(o, x=x).run("gelu") * 2

        compiled = torch.compile(run, fullgraph=True, mode=mode)
        for _ in range(3):
            with torch.no_grad():
                y = compiled(o.x).clone()
                torch.testing.assert_close(y, run(o.x), rtol=0, atol=0)


def test_autocast_runs_the_kernel_in_half_precision() -> None:
    o = on_gpu(FORMS["mixed"](16), torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        y = o.run("silu")
    assert y.dtype == torch.bfloat16
    half = o.map(lambda t: t.bfloat16())
    torch.testing.assert_close(y, half.run("silu"), rtol=0, atol=0)


def test_the_intermediate_is_that_of_one_chunk() -> None:
    blocks = grid([256] * 8, [256] * 8, lambda i, j: 32)
    o = on_gpu(draw_tiling(16384, blocks, (2048, 2048), bias=False), torch.bfloat16)
    o.run()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    y = o.run()
    torch.cuda.synchronize()
    beyond = torch.cuda.max_memory_allocated() - before - y.nbytes
    assert o.form.left.slots % SLOT == 0
    assert beyond < 16384 * o.form.left.slots * 2 / 2  # the whole would be twice as much


def test_it_does_not_synchronise() -> None:
    for form in ("mixed", "monarch", "blast"):
        o = on_gpu(FORMS[form](300), torch.bfloat16).map(lambda t: t.requires_grad_())
        o.run("gelu").sum().backward()
        torch.cuda.set_sync_debug_mode("error")
        try:
            o.run("gelu").sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@needs_sanitizer
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_under_the_sanitizer(tool: str) -> None:
    code = (
        "import sys; sys.path[:0] = ['.', 'kernels']\n"
        "from tests.gpu.test_blr_linear import FORMS, on_gpu, torch\n"
        "for form in ('mixed', 'monarch of rank 2', 'blast'):\n"
        "    for M in (16, 140):\n"
        "        o = on_gpu(FORMS[form](M), torch.float16).map(lambda t: t.requires_grad_())\n"
        "        o.run('gelu').sum().backward()\n"
        "torch.cuda.synchronize()\n"
    )
    assert_sane(code, tool)
