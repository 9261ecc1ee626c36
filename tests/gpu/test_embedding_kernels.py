"""The kernels of lowrank_embedding and tt_embedding on a GPU: the laws, and what is their own.

Needs torch, Triton and pytest alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tensorlrf.nn import FactoredEmbedding, factorize
from tensorlrf.ops import PathTable
from tensorlrf_kernels.lowrank_embedding import fused, lowrank_embedding
from tensorlrf_kernels.tt_embedding import tt_embedding
from tests.draws import seeded
from tests.kernels.drawn.embedding import (
    Lookup,
    draw_indices,
    forward_bound,
    gradient_bounds,
    matrices,
    trains,
)
from tests.kernels.drawn.lowrank import LAYOUTS, assert_within
from tests.laws.device import GradientLaws, SanitizerLaws, beyond_the_result
from tests.processes import python

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("ieee_float32", "launches_succeed")]

HALF = torch.bfloat16


class LookupLaws(GradientLaws):
    """Of an op whose leaves are the factors of a table; its data are the indices."""

    ways = ((True, None, "rows"),)
    backward_too = True
    slack = 2.0  # library products may round float16 sums of many terms once more

    def leaves(self, o: Lookup) -> list[Tensor]:
        return [o.one, o.other]

    def filled(self, o: Lookup, tensors: Iterable[Tensor]) -> Lookup:
        return Lookup(o.indices, *tensors, o.shape, o.padding_idx)

    def run(self, o: Lookup, activation: str | None = None) -> Tensor:
        if o.one.ndim == 3:
            return tt_embedding(o.indices, o.one, o.other, o.shape, o.padding_idx)
        return lowrank_embedding(o.indices, o.one, o.other, o.padding_idx)

    def agrees(self, y: Tensor, o: Lookup, activation: str | None) -> None:
        assert_within(y.detach(), o.table()[o.indices.cpu()], forward_bound(o), "y")

    def gradients(
        self, o: Lookup, dy: Tensor, activation: str | None
    ) -> Iterable[tuple[Tensor, Tensor]]:
        return zip(o.gradients(dy), gradient_bounds(o, dy), strict=True)

    def check_gradients(self, o: Lookup, dy: Tensor, activation: str | None) -> None:
        """With a row of padding as well."""
        super().check_gradients(o, dy, activation)
        o.padding_idx = int(o.indices[3])
        super().check_gradients(o, dy, activation)

    def renew(self, o: Lookup) -> None:
        o.indices.copy_(draw_indices(len(o.indices), o.shape[0], seed=1))


class TestLowrankEmbedding(LookupLaws, SanitizerLaws):
    """Sizes are M, n, d, r and of how many rows the indices are."""

    cases = (
        (1, 1, 1, 1),
        (1, 5000, 4096, 256),
        (7, 333, 1001, 33),
        (64, 5000, 4096, 256),
        (65, 129, 70, 17),
        (300, 2000, 768, 96),
        (1000, 257, 130, 300),
        (8192, 5000, 1024, 256),
    )
    few = (
        (16, 500, 700, 64),
        (300, 90, 200, 40),
        (8192, 500, 700, 64, 40),
        (8192, 500, 700, 200, 40),
    )
    traineds = tuple(
        (*sizes, spread)
        for sizes in ((70, 40, 33, 5), (3000, 900, 200, 64), (2048, 300, 130, 200))
        for spread in (1, 3, None)
    )
    empty = (0, 9, 20, 4)
    sanitized = (
        "from tensorlrf_kernels.lowrank_embedding import lowrank_embedding\n"
        "from tensorlrf_kernels.tt_embedding import tt_embedding\n"
        "i = torch.arange(70, device='cuda') % 9\n"
        "a = torch.ones(9, 33, device='cuda', dtype=torch.bfloat16, requires_grad=True)\n"
        "b = torch.ones(33, 65, device='cuda', dtype=torch.bfloat16, requires_grad=True)\n"
        "lowrank_embedding(i, a, b).sum().backward()\n"
        "c, d = torch.ones(3, 7, 5).cuda().half(), torch.ones(5, 3, 9).cuda().half()\n"
        "tt_embedding(i, c, d)\n"
    )

    def draw(
        self, case: Any, dtype: torch.dtype, *, terms: bool = True, layout: str = "rows"
    ) -> Lookup:
        M, n, d, r, *spread = case
        indices = draw_indices(M, n, spread=spread[0] if spread else None).cuda()
        o = matrices(n, d, r, indices, dtype)
        o.one, o.other = LAYOUTS[layout](o.one), LAYOUTS[layout](o.other)
        return o

    def test_indices_in_int32_and_of_any_strides(self) -> None:
        for dtype in self.dtypes:
            o = self.draw(self.few[1], dtype)
            o.indices = o.indices.int().view(3, 100).T
            self.check(o)

    def test_float32_rows_beside_half_precision(self) -> None:
        o = self.draw((500, 90, 200, 40), HALF)
        o.one = o.one.float()
        self.check(o)
        self.check_gradients(o, self.upstream(o), None)
        o = self.draw((500, 90, 200, 40), torch.float32)
        with torch.autocast("cuda", HALF):
            y = self.run(o)
        o.other = o.other.to(HALF)
        torch.testing.assert_close(y, self.run(o), rtol=0, atol=0)

    def test_a_row_far_from_the_others(self) -> None:
        o = self.draw((4, 3, 40, 16), torch.float16)
        far = torch.empty(2**31 + 64, dtype=torch.float16, device="cuda")
        o.one = far.as_strided((3, 16), (2**30 + 8, 1)).copy_(o.one)
        self.check(o)


class TestTTEmbedding(LookupLaws):
    """Sizes are M, (n1, n2, d1, d2), R, and of the rows and columns that are padding."""

    cases = (
        (1, (1, 1, 1, 1), 1, 0),
        (64, (50, 60, 64, 64), 64, 0),
        (300, (7, 9, 33, 20), 5, 4),
        (4096, (70, 71, 100, 30), 32, 7),
    )
    few = ((16, (20, 30, 16, 12), 8, 0), (4096, (20, 30, 16, 12), 8, 0))
    traineds = ((500, (20, 30, 16, 12), 8, 3),)
    layouts = ("rows",)
    empty = (0, (3, 3, 4, 4), 2, 0)

    def draw(
        self, case: Any, dtype: torch.dtype, *, terms: bool = True, layout: str = "rows"
    ) -> Lookup:
        M, sizes, R, pad = case
        shape = (sizes[0] * sizes[1] - pad, sizes[2] * sizes[3] - pad)
        return trains(sizes, R, draw_indices(M, shape[0]).cuda(), dtype, shape)


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
    done = python("-c", code)
    assert "before" in done.stdout, done.stderr[-2000:]
    assert "after" not in done.stdout
    assert "CUDA error" in done.stderr


def test_results_of_more_than_31_bits() -> None:
    M = 2**31 // 4096 + 3
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
    o = matrices(20000, 1024, 256, draw_indices(8192, 20000).cuda(), HALF)
    beyond = beyond_the_result(lambda: lowrank_embedding(o.indices, o.one, o.other))
    assert beyond < 8192 * 256 * 2 // 4


def test_sums_of_equal_indices_have_the_sums_of_torch() -> None:
    values, indices = seeded(5000, 70).float().cuda(), draw_indices(5000, 900, spread=50).cuda()
    got = fused.segment_sums(values, indices, 900, 3, torch.float32)
    want = torch.ops.aten.embedding_dense_backward(values, indices, 900, 3, False)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
