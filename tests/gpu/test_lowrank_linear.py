"""lowrank_linear's kernels on a GPU: the laws, and what is its own.

Needs torch, Triton and pytest alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tensorlrf import ops
from tensorlrf.factors import LowRank
from tensorlrf.nn import FactoredLinear
from tensorlrf_kernels._activation import ACTIVATIONS
from tensorlrf_kernels.chips import chip_of
from tensorlrf_kernels.lowrank_linear import fused, lowrank_linear, reference
from tensorlrf_kernels.lowrank_linear.launch import forward
from tests.kernels.drawn import lowrank
from tests.kernels.drawn.lowrank import LAYOUTS, Operands, draw, far_apart
from tests.laws.device import (
    CooperativeLaws,
    ProductLaws,
    SanitizerLaws,
    beyond_the_result,
    training_bytes,
)

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("ieee_float32", "launches_succeed")]


class TestLowrankLinear(ProductLaws, CooperativeLaws, SanitizerLaws):
    """Sizes are M, N, K and R."""

    drawn = lowrank
    cases = (
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
    few = ((16, 500, 700, 64), (300, 200, 150, 40))
    traineds = ((300, 200, 150, 40), (2048, 513, 129, 100), (70, 33, 65, 5))
    activations = (None, *ACTIVATIONS)
    slack = 2.0  # the kept t of half precision is rounded once more than the exact one
    empty = (0, 20, 30, 8)
    wide = ((20, 200, 1500, 40), (300, 200, 1500, 40))
    together = (16, 4096, 4096, 64)
    sanitized = (
        "from tensorlrf_kernels.lowrank_linear import lowrank_linear as f\n"
        "for M in (16, 140):\n"
        "    sizes = ((M, 70), (20, 70), (50, 20), (50,), (M, 50))\n"
        "    t = [torch.randn(s, device='cuda', dtype=torch.float16) for s in sizes]\n"
        "    t = [x.requires_grad_() for x in t]\n"
        "    f(*t, 'gelu').sum().backward()\n"
    )

    def draw(
        self, case: Any, dtype: torch.dtype, *, terms: bool = True, layout: str = "rows"
    ) -> Operands:
        return draw(*case, dtype, terms=terms, layout=LAYOUTS[layout], device="cuda")

    def run(self, o: Operands, activation: str | None = None) -> Tensor:
        return lowrank_linear(*o.each(), activation)

    def between(self, o: Operands) -> Tensor:
        return o.x.double() @ o.right.double().T

    @pytest.mark.parametrize("M", [3, 130])
    def test_offsets_beyond_31_bits(self, M: int) -> None:
        o = self.draw((M, 20, 40, 16), torch.float16)
        x = far_apart(o.x)
        self.check(replace(o, x=x), "gelu")
        far = x.as_strided(((M - 1) * x.stride(0) + 40,), (1,))
        across = far.as_strided((M, 40), (1, (far.numel() - M) // 39))
        across.copy_(o.x)
        self.check(replace(o, x=across), "gelu")
        del far, x, across
        rows = 2**31 // 4096 + 3  # y has more than 2^31 elements
        x = torch.zeros(rows, 16, dtype=torch.float16, device="cuda")
        x[-2:] = 1.0
        ones = torch.ones(4096, 16, dtype=torch.float16, device="cuda")
        y = lowrank_linear(x, ones[:16], ones)
        assert not y[:-2].any()
        assert bool((y[-2:] == 256).all())


def layer_of(o: Operands, path: str) -> FactoredLinear:
    layer = FactoredLinear(LowRank(o.left, o.right), o.bias)
    layer.path_table = ops.PathTable.single(path)
    return layer


@pytest.mark.parametrize("M", [16, 300])
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_layer_compiled_in_one_graph(M: int, mode: str) -> None:
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


def test_neither_intermediate_nor_weight_is_in_memory() -> None:
    M, N, K, R = 8192, 2048, 4096, 64
    o = draw(M, N, K, R, torch.bfloat16, device="cuda", terms=False)
    # t alone would take M R values.
    assert beyond_the_result(lambda: lowrank_linear(*o.each())) < M * R * 2 // 4


def test_training_takes_less_memory_than_the_chain() -> None:
    def leaves() -> list[Tensor]:
        o = draw(8192, 2048, 2048, 64, torch.bfloat16, device="cuda")
        return [t for t in o.each() if t is not None]

    ours, theirs = (
        training_bytes(lambda *t, f=f: f(*t, "gelu"), leaves)
        for f in (lowrank_linear, reference.lowrank_linear)
    )
    assert ours < theirs


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
    config = forward(fused.problem_of(o.x, o.right, o.left), chip_of(o.x.device))
    assert config is not None
    assert config.cooperative
    limit = torch.cuda.get_device_properties(0).multi_processor_count
    assert config.programs <= 2 * limit
