"""The kernels of lowrank_embedding and tt_embedding on a GPU: against float64, in graphs, compiled.

Needs torch, Triton and pytest alone.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tensorlrf.nn import FactoredEmbedding, factorize
from tensorlrf.ops import PathTable
from tensorlrf_kernels.lowrank_embedding import fused, lowrank_embedding
from tensorlrf_kernels.tt_embedding import tt_embedding
from tests.draws import seeded
from tests.gpu.sanitizer import assert_sane, needs_sanitizer
from tests.kernels.drawn.embedding import (
    Lookup,
    draw_indices,
    forward_bound,
    gradient_bounds,
    matrices,
    trains,
)
from tests.kernels.drawn.lowrank import LAYOUTS, assert_within

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("ieee_float32", "launches_succeed")]

ROOT = Path(__file__).resolve().parents[2]
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LOOKUPS = (  # M, n, d, r
    (1, 1, 1, 1),
    (1, 5000, 4096, 256),
    (7, 333, 1001, 33),
    (64, 5000, 4096, 256),
    (65, 129, 70, 17),
    (300, 2000, 768, 96),
    (1000, 257, 130, 300),
    (8192, 5000, 1024, 256),
)
TRAINS = (  # M, (n1, n2, d1, d2), R, rows and columns of padding
    (1, (1, 1, 1, 1), 1, 0),
    (64, (50, 60, 64, 64), 64, 0),
    (300, (7, 9, 33, 20), 5, 4),
    (4096, (70, 71, 100, 30), 32, 7),
)


def run(o: Lookup) -> Tensor:
    # Memory that the op gets was last full of NaN.
    size = (o.indices.numel(), o.shape[1])
    poison = [torch.full(size, math.nan, device="cuda", dtype=o.other.dtype) for _ in range(3)]
    del poison
    if o.one.ndim == 3:
        return tt_embedding(o.indices, o.one, o.other, o.shape, o.padding_idx)
    return lowrank_embedding(o.indices, o.one, o.other, o.padding_idx)


def lookup(M: int, n: int, d: int, r: int, dtype: torch.dtype, spread: int | None = None) -> Lookup:
    return matrices(n, d, r, draw_indices(M, n, spread=spread).cuda(), dtype)


def train(M: int, sizes: tuple[int, int, int, int], R: int, pad: int, dtype: torch.dtype) -> Lookup:
    shape = (sizes[0] * sizes[1] - pad, sizes[2] * sizes[3] - pad)
    return trains(sizes, R, draw_indices(M, shape[0]).cuda(), dtype, shape)


def check(o: Lookup) -> None:
    y = run(o)
    assert y.dtype == o.other.dtype
    assert_within(y.detach(), o.table()[o.indices.cpu()], forward_bound(o), "y")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_agrees_with_float64(dtype: torch.dtype) -> None:
    for sizes in LOOKUPS:
        check(lookup(*sizes, dtype))
    for case in TRAINS:
        check(train(*case, dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_and_either_index(layout: str) -> None:
    for dtype in DTYPES:
        o = lookup(300, 90, 200, 40, dtype)
        o.one, o.other = LAYOUTS[layout](o.one), LAYOUTS[layout](o.other)
        check(o)
        o.indices = o.indices.int().view(3, 100).T
        check(o)
    o = lookup(300, 90, 200, 40, torch.bfloat16)
    o.one = o.one.float()
    check(o)


def check_gradients(o: Lookup) -> None:
    o.one, o.other = (t.requires_grad_() for t in (o.one, o.other))
    dy = seeded(*o.indices.shape, o.shape[1], seed=5).to("cuda", o.other.dtype)
    got = torch.autograd.grad(run(o), (o.one, o.other), dy)
    expected, bounds = o.gradients(dy), gradient_bounds(o, dy)
    for g, want, bound, t in zip(got, expected, bounds, (o.one, o.other), strict=True):
        assert g.dtype == t.dtype
        # Library products may round float16 sums of many terms once more.
        assert_within(g, want, 2 * bound, f"gradient {tuple(g.shape)}")


@pytest.mark.parametrize("spread", [1, 3, None], ids=["one index", "three", "many"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_agree_with_float64(dtype: torch.dtype, spread: int | None) -> None:
    for sizes in ((70, 40, 33, 5), (3000, 900, 200, 64), (2048, 300, 130, 200)):
        o = lookup(*sizes, dtype, spread)
        check_gradients(o)
        o = lookup(*sizes, dtype, spread)
        o.padding_idx = int(o.indices[3])
        check_gradients(o)
    o = train(500, (20, 30, 16, 12), 8, 3, dtype)
    o.padding_idx = int(o.indices[3])
    check_gradients(o)


def test_float32_rows_beside_half_precision() -> None:
    o = lookup(500, 90, 200, 40, torch.bfloat16)
    o.one = o.one.float()
    check_gradients(o)
    o = lookup(500, 90, 200, 40, torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        y = lowrank_embedding(o.indices, o.one, o.other)
    torch.testing.assert_close(
        y, lowrank_embedding(o.indices, o.one, o.other.bfloat16()), rtol=0, atol=0
    )


def test_results_repeat_to_the_bit() -> None:
    for o in (
        lookup(8192, 500, 700, 64, torch.bfloat16, spread=40),
        lookup(8192, 500, 700, 200, torch.bfloat16, spread=40),
        train(4096, (20, 30, 16, 12), 8, 0, torch.bfloat16),
    ):
        o.one, o.other = (t.requires_grad_() for t in (o.one, o.other))
        runs = []
        for _ in range(3):
            y = run(o)
            runs.append((y, *torch.autograd.grad(y.float().square().sum(), (o.one, o.other))))
        for again in runs[1:]:
            for a, b in zip(runs[0], again, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_nothing_to_look_up() -> None:
    for o in (lookup(0, 9, 20, 4, torch.bfloat16), train(0, (3, 3, 4, 4), 2, 0, torch.bfloat16)):
        o.one = o.one.requires_grad_()
        y = run(o)
        assert y.shape == (0, o.shape[1])
        y.sum().backward()
        assert o.one.grad is not None
        assert not o.one.grad.any()


@pytest.mark.parametrize("op", ["lowrank", "tt"])
@pytest.mark.parametrize("index", [-1, 23])
def test_an_index_out_of_range_stops_the_device(op: str, index: int) -> None:
    """In a process of its own, whose CUDA context is lost."""
    code = (
        "import torch\n"
        "from tensorlrf_kernels.lowrank_embedding import lowrank_embedding\n"
        "from tensorlrf_kernels.tt_embedding import tt_embedding\n"
        f"i = torch.tensor([0, {index}], device='cuda')\n"
        "a, b = torch.ones(23, 4).cuda().half(), torch.ones(4, 20).cuda().half()\n"
        "c, d = torch.ones(4, 3, 2).cuda().half(), torch.ones(2, 6, 4).cuda().half()\n"
        "run = {'lowrank': lambda i: lowrank_embedding(i, a, b),\n"
        f"       'tt': lambda i: tt_embedding(i, c, d, (23, 12))}}[{op!r}]\n"
        "run(i.clamp(0, 22)); torch.cuda.synchronize(); print('before', flush=True)\n"
        "run(i); torch.cuda.synchronize(); print('after', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"},
        timeout=300,
    )
    assert "before" in done.stdout, done.stderr[-2000:]
    assert "after" not in done.stdout
    assert "CUDA error" in done.stderr


def test_offsets_beyond_31_bits() -> None:
    o = lookup(4, 3, 40, 16, torch.float16)
    far = torch.empty(2**31 + 64, dtype=torch.float16, device="cuda")
    left = far.as_strided((3, 16), (2**30 + 8, 1))
    left.copy_(o.one)
    o.one = left
    check(o)
    del far, left
    M = 2**31 // 4096 + 3  # y has more than 2^31 elements
    indices = torch.zeros(M, dtype=torch.int64, device="cuda")
    indices[-2:] = 1
    table = torch.tensor([[0.0], [1.0]], device="cuda").half()
    y = lowrank_embedding(indices, table.expand(2, 16), torch.ones(16, 4096, device="cuda").half())
    assert not y[:-2].any()
    assert bool((y[-2:] == 16).all())
    first = table.view(2, 1, 1).expand(2, 64, 16)
    y = tt_embedding(indices, first, torch.ones(16, 1, 64, device="cuda").half())
    assert not y[:-2].any()
    assert bool((y[-2:] == 16).all())


@pytest.mark.parametrize("M", [16, 300])
def test_cuda_graphs_replay_on_new_indices(M: int) -> None:
    for o in (
        lookup(M, 500, 700, 64, torch.bfloat16),
        train(M, (20, 30, 16, 12), 8, 0, torch.bfloat16),
    ):
        run(o)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        call = tt_embedding if o.one.ndim == 3 else lowrank_embedding
        with torch.cuda.graph(graph):
            y = call(o.indices, o.one, o.other)
        for seed in (1, 2):
            o.indices.copy_(draw_indices(M, o.shape[0], seed))
            y.fill_(math.nan)
            graph.replay()
            assert_within(y, o.table()[o.indices.cpu()], forward_bound(o), "y")


@pytest.mark.parametrize("method", ["svd", "tt"])
def test_a_layer_on_the_kernel(method: str) -> None:
    layer = factorize(nn.Embedding(500, 64, padding_idx=3), method, 8).to("cuda", torch.bfloat16)
    assert type(layer) is FactoredEmbedding
    assert "fused" in layer.paths
    layer.path_table = PathTable.single("fused")
    i = draw_indices(300, 500).cuda()
    compiled = torch.compile(layer, fullgraph=True)
    with torch.no_grad():
        y = layer(i)
        torch.testing.assert_close(compiled(i), y, rtol=0, atol=0)
    dense = layer.weight.detach()[i]
    # Two roundings of a table whose entries are near one: of the table, and of y.
    torch.testing.assert_close(y, dense, rtol=2e-2, atol=2e-2)
    layer(i).float().square().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_neither_gathered_rows_nor_table_are_in_memory() -> None:
    o = lookup(8192, 20000, 1024, 256, torch.bfloat16)
    run(o)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    y = lowrank_embedding(o.indices, o.one, o.other)
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before - y.nbytes < 8192 * 256 * 2 // 4


def test_it_does_not_synchronise() -> None:
    o = lookup(300, 500, 700, 64, torch.bfloat16)
    o.one, o.other = (t.requires_grad_() for t in (o.one, o.other))
    run(o).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        lowrank_embedding(o.indices, o.one, o.other).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_sums_of_equal_indices_have_the_sums_of_torch() -> None:
    values, indices = seeded(5000, 70).float().cuda(), draw_indices(5000, 900, spread=50).cuda()
    got = fused.segment_sums(values, indices, 900, 3, torch.float32)
    want = torch.ops.aten.embedding_dense_backward(values, indices, 900, 3, False)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@needs_sanitizer
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_under_the_sanitizer(tool: str) -> None:
    code = (
        "import torch; from tensorlrf_kernels.lowrank_embedding import lowrank_embedding\n"
        "from tensorlrf_kernels.tt_embedding import tt_embedding\n"
        "i = torch.arange(70, device='cuda') % 9\n"
        "a = torch.ones(9, 33, device='cuda', dtype=torch.bfloat16, requires_grad=True)\n"
        "b = torch.ones(33, 65, device='cuda', dtype=torch.bfloat16, requires_grad=True)\n"
        "lowrank_embedding(i, a, b).sum().backward()\n"
        "c, d = torch.ones(3, 7, 5).cuda().half(), torch.ones(5, 3, 9).cuda().half()\n"
        "tt_embedding(i, c, d); torch.cuda.synchronize()\n"
    )
    assert_sane(code, tool)
