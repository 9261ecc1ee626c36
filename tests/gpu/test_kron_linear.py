"""kron_linear's kernels on a GPU: against float64, in graphs, compiled, under the sanitizer.

Needs torch, Triton and pytest alone.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tensorlrf_kernels._activation import ACTIVATIONS
from tensorlrf_kernels.kron_linear import kron_linear, reference
from tests.gpu.sanitizer import assert_sane, needs_sanitizer
from tests.kernels.drawn.kron import (
    NAMES,
    KronOperands,
    backward_bounds,
    draw_kron,
    exact,
    forward_bound,
    gradients,
)
from tests.kernels.drawn.lowrank import LAYOUTS, assert_within

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("ieee_float32", "launches_succeed")]

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SHAPES = (  # M, (m1, n1), (m2, n2), s
    (1, (16, 16), (16, 16), 1),
    (1, (64, 64), (64, 64), 4),
    (16, (112, 64), (128, 64), 1),
    (5, (17, 33), (100, 29), 3),
    (300, (64, 64), (64, 64), 1),
    (300, (64, 64), (64, 64), 4),
    (200, (32, 64), (128, 64), 2),
    (150, (128, 16), (16, 128), 5),
    (140, (128, 128), (128, 128), 1),
    (70, (128, 128), (128, 128), 3),
    (600, (32, 32), (32, 32), 16),
    (333, (80, 48), (24, 112), 7),
)
FLAGSHIP = ((64, 64), (64, 64))


def check_forward(o: KronOperands, activation: str | None) -> None:
    # Memory that the op gets was last full of NaN.
    M, N = len(o.x), o.a.shape[1] * o.b.shape[1]
    poison = [torch.full((M, N), math.nan, device="cuda", dtype=o.x.dtype) for _ in range(3)]
    del poison
    y = kron_linear(*o.each(), activation)
    assert y.dtype == o.x.dtype
    assert y.is_contiguous()
    assert_within(y, exact(o, activation), forward_bound(o, activation), "y")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_agrees_with_float64(shape, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]  # as in SHAPES
    for terms, activation in ((False, None), (True, "gelu")):
        check_forward(draw_kron(*shape, dtype, terms=terms, device="cuda"), activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation: str) -> None:
    for dtype in DTYPES:
        for M in (3, 300):
            check_forward(draw_kron(M, (33, 40), (64, 20), 2, dtype, device="cuda"), activation)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str) -> None:
    for dtype in DTYPES:
        for one, other in (FLAGSHIP, ((33, 40), (64, 20))):
            o = draw_kron(200, one, other, 2, dtype, layout=LAYOUTS[layout], device="cuda")
            check_forward(o, "silu")


def test_tf32_by_torchs_switch() -> None:
    o = draw_kron(200, *FLAGSHIP, 4, torch.float32, device="cuda")
    right = exact(o, None)
    single = (kron_linear(*o.each()).double().cpu() - right).norm() / right.norm()
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    tf32 = (kron_linear(*o.each()).double().cpu() - right).norm() / right.norm()
    assert single < 1e-6
    assert 1e-5 < tf32 < 1e-3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backward_agrees_with_float64(  # type: ignore[no-untyped-def]  # as in SHAPES
    shape, activation: str | None, dtype: torch.dtype
) -> None:
    o = draw_kron(*shape, dtype, device="cuda")
    dy = draw_kron(*shape, dtype, device="cuda", seed=1).residual
    assert dy is not None
    leaves = o.map(lambda t: t.requires_grad_())
    kron_linear(*leaves.each(), activation).backward(dy)
    bounds = backward_bounds(o, dy, activation)
    for name, value in gradients(o, dy, activation).items():
        assert_within(getattr(leaves, name).grad, value, bounds[name], name)


@pytest.mark.parametrize("only", range(5))
@pytest.mark.parametrize("activation", [None, "silu"])
def test_only_the_gradient_that_is_needed(activation: str | None, only: int) -> None:
    """With the bias alone and no activation nothing is launched at all."""
    o = draw_kron(70, *FLAGSHIP, 2, torch.bfloat16, device="cuda")
    dy = draw_kron(70, *FLAGSHIP, 2, torch.bfloat16, device="cuda", seed=1).residual
    assert dy is not None
    given = [t.requires_grad_(k == only) for k, t in enumerate(o.each()) if t is not None]
    kron_linear(*given, activation).backward(dy)
    expected, bounds = gradients(o, dy, activation), backward_bounds(o, dy, activation)
    for k, (name, t) in enumerate(zip(NAMES, given, strict=True)):
        assert (t.grad is not None) == (k == only)
        if t.grad is not None:
            assert_within(t.grad, expected[name], bounds[name], name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_any_strides(layout: str) -> None:
    shape = (200, (33, 40), (64, 20), 2)
    o = draw_kron(*shape, torch.float16, layout=LAYOUTS[layout], device="cuda")
    dy = draw_kron(*shape, torch.float16, layout=LAYOUTS[layout], device="cuda", seed=1).residual
    assert dy is not None
    # A tensor of which every row is the first cannot be a leaf of its own strides.
    leaves = [t.detach().requires_grad_() for t in o.each() if t is not None]
    found = torch.autograd.grad(kron_linear(*leaves, "silu"), leaves, dy)
    expected, bounds = gradients(o, dy, "silu"), backward_bounds(o, dy, "silu")
    for name, got in zip(NAMES, found, strict=True):
        assert_within(got, expected[name], bounds[name], name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_close_in_norm(dtype: torch.dtype) -> None:
    """As the benchmarks demand it: the bounds above hold in the worst case."""
    goal = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-5}[dtype]
    o = draw_kron(2048, *FLAGSHIP, 4, dtype, device="cuda")
    dy = draw_kron(2048, *FLAGSHIP, 4, dtype, device="cuda", seed=1).residual
    assert dy is not None
    leaves = o.map(lambda t: t.requires_grad_())
    y = kron_linear(*leaves.each(), "gelu")
    y.backward(dy)
    right = exact(o, "gelu")
    assert float((y.double().cpu() - right).norm() / right.norm()) < goal
    for name, value in gradients(o, dy, "gelu").items():
        got = getattr(leaves, name).grad.double().cpu()
        assert float((got - value).norm() / value.norm()) < goal, name


def test_results_repeat_to_the_bit() -> None:
    for M in (3, 2000):
        o = draw_kron(M, *FLAGSHIP, 3, torch.bfloat16, device="cuda")
        leaves = [t.requires_grad_() for t in o.each() if t is not None]
        runs = []
        for _ in range(3):
            y = kron_linear(*leaves, "gelu")
            runs.append((y, *torch.autograd.grad(y.float().square().sum(), leaves)))
        for again in runs[1:]:
            for a, b in zip(runs[0], again, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(0, *FLAGSHIP, 2), (20, (8, 64), (64, 64), 2)], ids=str)
def test_what_no_kernel_serves_runs_all_the_same(shape) -> None:  # type: ignore[no-untyped-def]  # as in SHAPES
    o = draw_kron(*shape, torch.float32, device="cuda").map(lambda t: t.requires_grad_())
    y = kron_linear(*o.each(), "silu")
    torch.testing.assert_close(y, reference.kron_linear(*o.each(), "silu"), rtol=0, atol=0)
    y.sum().backward()
    assert o.a.grad is not None
    assert bool(o.a.grad.any()) == (len(o.x) > 0)


def test_float16_holds_an_intermediate_beyond_its_range() -> None:
    o = draw_kron(200, *FLAGSHIP, 2, torch.float16, device="cuda", terms=False)
    o.x *= 300
    o.a *= 300
    o.b *= 2.0**-14
    t = torch.einsum("sik,rkl->rsil", o.a.double(), o.x.double().view(200, 64, 64))
    assert t.abs().max() > torch.finfo(torch.float16).max
    check_forward(o, "silu")


def test_offsets_beyond_31_bits() -> None:
    o = draw_kron(3, (16, 24), (17, 16), 2, torch.float16, device="cuda")
    far = torch.empty(2**32 + 2000, dtype=torch.float16, device="cuda")
    x = far.as_strided((3, 384), (2**31, 1))
    a = far[1000:].as_strided((2, 16, 24), (2**31, 24, 1))
    x.copy_(o.x)
    a.copy_(o.a)
    check_forward(replace(o, x=x, a=a), "gelu")
    del far, x, a
    rows = 2**31 // 4096 + 3  # y has more than 2^31 elements
    x = torch.zeros(rows, 256, dtype=torch.float16, device="cuda")
    x[-2:] = 1.0
    ones = torch.ones(1, 64, 16, dtype=torch.float16, device="cuda")
    y = kron_linear(x, ones, ones)
    assert not y[:-2].any()
    assert bool((y[-2:] == 256).all())


@pytest.mark.parametrize("M", [3, 300])
def test_cuda_graphs_replay_on_new_data(M: int) -> None:
    o = draw_kron(M, *FLAGSHIP, 2, torch.bfloat16, device="cuda")
    kron_linear(*o.each(), "gelu")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = kron_linear(*o.each(), "gelu")
    for seed in (1, 2):
        fresh = draw_kron(M, *FLAGSHIP, 2, torch.bfloat16, device="cuda", seed=seed)
        for mine, new in zip(o.each(), fresh.each(), strict=True):
            assert mine is not None
            assert new is not None
            mine.copy_(new)
        y.fill_(math.nan)
        graph.replay()
        assert_within(y, exact(o, "gelu"), forward_bound(o, "gelu"), "y")


def test_compiled_in_one_graph() -> None:
    o = draw_kron(300, *FLAGSHIP, 2, torch.bfloat16, device="cuda")
    compiled = torch.compile(kron_linear, fullgraph=True)
    y = kron_linear(*o.each(), "gelu")
    torch.testing.assert_close(compiled(*o.each(), "gelu"), y, rtol=0, atol=0)
    leaves = [t.requires_grad_() for t in o.each() if t is not None]
    dy = torch.ones_like(y)
    found = torch.autograd.grad(compiled(*leaves, "gelu"), leaves, dy)
    expected = torch.autograd.grad(kron_linear(*leaves, "gelu"), leaves, dy)
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def test_autocast_runs_the_kernel_in_half_precision() -> None:
    o = draw_kron(16, *FLAGSHIP, 2, torch.float32, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        y = kron_linear(*o.each(), "silu")
    half = o.map(lambda t: t.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, kron_linear(*half.each(), "silu"), rtol=0, atol=0)


def test_neither_intermediate_nor_weight_is_in_memory() -> None:
    o = draw_kron(8192, *FLAGSHIP, 2, torch.bfloat16, device="cuda", terms=False)
    kron_linear(*o.each())
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    y = kron_linear(*o.each())
    torch.cuda.synchronize()
    beyond = torch.cuda.max_memory_allocated() - before - y.nbytes
    assert beyond < 2**20  # what lies between takes 128 MiB, the weight 32


def test_training_takes_less_memory_than_the_chain() -> None:
    def peak(run) -> int:  # type: ignore[no-untyped-def]  # either of two functions
        o = draw_kron(4096, *FLAGSHIP, 4, torch.bfloat16, device="cuda", terms=False)
        leaves = [t.requires_grad_() for t in (o.x, o.a, o.b)]
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        y = run(*leaves, None, None, "gelu")
        y.backward(torch.ones_like(y))
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    for run in (kron_linear, reference.kron_linear):
        peak(run)
    assert peak(kron_linear) < peak(reference.kron_linear) / 2


def test_it_does_not_synchronise() -> None:
    o = draw_kron(16, *FLAGSHIP, 2, torch.bfloat16, device="cuda")
    leaves = [t.requires_grad_() for t in o.each() if t is not None]

    def step() -> None:
        y = kron_linear(*leaves, "gelu")
        torch.autograd.grad(y, leaves, torch.ones_like(y))

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_operands_on_two_devices_are_named() -> None:
    o = draw_kron(16, *FLAGSHIP, 2, torch.bfloat16, device="cuda")
    with pytest.raises(ValueError, match="b is on cpu, x on cuda"):
        kron_linear(o.x, o.a, o.b.cpu())


@needs_sanitizer
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_under_the_sanitizer(tool: str) -> None:
    code = (
        "import torch; from tensorlrf_kernels.kron_linear import kron_linear as f\n"
        "for M, s, n in ((3, 1, 64), (140, 2, 64), (140, 5, 40)):\n"
        "    sizes = ((M, n * n), (s, n, n), (s, n, n), (n * n,), (M, n * n))\n"
        "    t = [torch.randn(s, device='cuda', dtype=torch.float16) for s in sizes]\n"
        "    t = [x.requires_grad_() for x in t]\n"
        "    f(*t, 'gelu').sum().backward()\n"
        "torch.cuda.synchronize()\n"
    )
    assert_sane(code, tool)
