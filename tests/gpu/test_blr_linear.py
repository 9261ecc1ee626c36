"""blr_linear's kernels on a GPU: the laws, and what is its own.

Needs torch, Triton and pytest alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from tensorlrf_kernels import launches
from tensorlrf_kernels.blr_linear import fused, tables
from tensorlrf_kernels.blr_linear.forms import SLOT
from tensorlrf_kernels.blr_linear.launch import forward
from tensorlrf_kernels.chips import chip_of
from tests.kernels.drawn import blr
from tests.kernels.drawn.blr import (
    BlockOperands,
    draw_blast,
    draw_monarch,
    draw_tiling,
    exact,
    forward_bound,
    grid,
    tree,
)
from tests.kernels.drawn.lowrank import LAYOUTS, assert_within, far_apart
from tests.laws.device import CooperativeLaws, ProductLaws, SanitizerLaws, beyond_the_result

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("ieee_float32", "launches_succeed")]

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


SERVED = tuple(product(FORMS, (1, 16, 33, 128, 129, 1000)))


class TestBlrLinear(ProductLaws, CooperativeLaws, SanitizerLaws):
    """A size is a form and the rows of x; the term is the bias."""

    drawn = blr
    cases = SERVED
    few = tuple(product(("mixed", "monarch", "blast"), (16, 300)))
    traineds = tuple(product(FORMS, (500,)))
    activations = (None, "gelu", "relu")
    backward_too = True
    empty = ("mixed", 0)
    wide = (("wide", 20), ("wide", 300))
    together = ("wide", 16)
    sanitized = (
        "import sys; sys.path[:0] = ['.', 'kernels']\n"
        "from tests.gpu.test_blr_linear import FORMS, on_gpu, torch\n"
        "for form in ('mixed', 'monarch of rank 2', 'blast'):\n"
        "    for M in (16, 140):\n"
        "        o = on_gpu(FORMS[form](M), torch.float16).map(lambda t: t.requires_grad_())\n"
        "        o.run('gelu').sum().backward()\n"
    )

    def draw(
        self, case: Any, dtype: torch.dtype, *, terms: bool = True, layout: str = "rows"
    ) -> BlockOperands:
        form, rows = case
        o = on_gpu(FORMS[form](rows), dtype)
        return replace(o, x=LAYOUTS[layout](o.x), bias=o.bias if terms else None)

    def leaves(self, o: BlockOperands) -> list[Tensor]:
        return [t for t in o.tensors if t is not None]

    def run(self, o: BlockOperands, activation: str | None = None) -> Tensor:
        return o.run(activation)

    def scratch(self, o: BlockOperands, y: Tensor) -> tuple[int, int]:
        return len(o.x), max(*o.form.shape, o.form.left.slots)

    def renew(self, o: BlockOperands) -> None:
        # A graph reads its tables for as long as it lives, whatever else comes and goes.
        tables._made.clear()
        super().renew(o)

    def between(self, o: BlockOperands) -> Tensor:
        """Of the first panel."""
        right = o.right.double()
        if o.text.startswith("blr"):
            right = right[: 57 * 240].view(57, 240)
        else:
            right = right.flatten(0, -3)[0]
        return o.x[:, : right.shape[1]].double() @ right.T

    def test_no_library_is_tested_in_a_kernels_place(self, case: Any, dtype: torch.dtype) -> None:
        o = self.draw(case, dtype)
        config = forward(fused.problem_of(o.form, o.x), chip_of(o.x.device))
        assert config is not None
        assert fused._worthwhile(o.form, config, False, o.x.device)

    def test_offsets_beyond_31_bits(self) -> None:
        for M in (3, 130):
            o = self.draw(("mixed", M), torch.float16)
            self.check(replace(o, x=far_apart(o.x)), "gelu")
        rows = 2**31 // 512 + 3  # y has more than 2^31 elements
        last = self.draw(("even", 1), torch.float16, terms=False)
        x = torch.zeros(rows, 192, dtype=torch.float16, device="cuda")
        x[-1:] = last.x
        y = replace(last, x=x).run()
        assert not y[:-1].any()
        self.agrees(y[-1:], last, None)


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


def test_compiled_with_cuda_graphs() -> None:
    for form in ("mixed", "monarch"):
        o = on_gpu(FORMS[form](300), torch.bfloat16)
        torch._dynamo.reset()

        def run(x: Tensor, o: BlockOperands = o) -> Tensor:
            return replace(o, x=x).run("gelu") * 2

        compiled = torch.compile(run, fullgraph=True, mode="reduce-overhead")
        for _ in range(3):
            with torch.no_grad():
                torch.testing.assert_close(compiled(o.x).clone(), run(o.x), rtol=0, atol=0)


def test_the_intermediate_is_that_of_one_chunk() -> None:
    blocks = grid([256] * 8, [256] * 8, lambda i, j: 32)
    o = on_gpu(draw_tiling(16384, blocks, (2048, 2048), bias=False), torch.bfloat16)
    assert o.form.left.slots % SLOT == 0
    # The whole would be twice as much.
    assert beyond_the_result(o.run) < 16384 * o.form.left.slots * 2 / 2
