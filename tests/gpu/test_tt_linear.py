"""tt_linear on a GPU: the Kronecker kernel on the halves, and one library product a core.

Needs torch, Triton and pytest alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tensorlrf.factors import TTMatrix
from tensorlrf.nn import FactoredLinear
from tensorlrf.ops import PathTable
from tensorlrf_kernels._activation import activate
from tensorlrf_kernels.tt_linear import reference, tt_linear
from tensorlrf_kernels.tt_linear.launch import served_cut
from tests.draws import seeded
from tests.kernels.drawn.lowrank import roundoff
from tests.laws.device import NormLaws

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("ieee_float32", "launches_succeed")]

TRAINS = {  # rows, columns and ranks of the cores: the first three by the kernel
    "8^4, rank 8": ((8,) * 4, (8,) * 4, (8, 8, 8)),
    "uneven": ((5, 7, 9, 4), (4, 6, 6, 11), (3, 10, 7)),
    "two cores": ((64, 48), (32, 80), (16,)),
    "rank 24": ((8,) * 4, (8,) * 4, (8, 24, 8)),
    "one core": ((40,), (24,), ()),
}


class Train(NamedTuple):
    """x (..., n), bias (m,) and the cores, so that every product stays near one."""

    x: Tensor
    bias: Tensor
    cores: tuple[Tensor, ...]


def drawn(name: str, dtype: torch.dtype, *lead: int) -> Train:
    rows, columns, ranks = TRAINS[name]
    ends = (1, *ranks, 1)
    cores = [
        seeded(ends[k], m, n, ends[k + 1], seed=k) / math.sqrt(n * ends[k])
        for k, (m, n) in enumerate(zip(rows, columns, strict=True))
    ]
    given = seeded(*lead, math.prod(columns), seed=8), seeded(math.prod(rows), seed=9)
    x, bias, *cores = (t.to("cuda", dtype) for t in (*given, *cores))
    return Train(x, bias, tuple(cores))


class TestTTLinear(NormLaws):
    """A size is a train and the leading sizes of x."""

    cases = traineds = tuple(product(TRAINS, ((1,), (3, 5), (300,))))
    few = (("8^4, rank 8", (256,)), ("uneven", (300,)))
    ways = ((True, "silu", "rows"),)
    layouts = ("rows",)
    slack = 2.0

    def off(self, dtype: torch.dtype) -> float:
        # Two merged factors, the state between four products and the result: seven roundings at
        # the most; float32 sums in the order of the tiles besides.
        return 8 * roundoff(dtype) + 1e-5

    def draw(
        self, case: Any, dtype: torch.dtype, *, terms: bool = True, layout: str = "rows"
    ) -> Train:
        name, lead = case
        return drawn(name, dtype, *lead)

    def leaves(self, o: Train) -> list[Tensor]:
        return [o.x, o.bias, *o.cores]

    def filled(self, o: Train, tensors: Iterable[Tensor]) -> Train:
        x, bias, *cores = tensors
        return Train(x, bias, tuple(cores))

    def run(self, o: Train, activation: str | None = None) -> Tensor:
        return tt_linear(o.x, o.cores, o.bias, None, activation)

    def definition(self, o: Train, leaves: Sequence[Tensor], activation: str | None) -> Tensor:
        x, bias, *cores = leaves
        return activate(F.linear(x, TTMatrix(tuple(cores)).to_dense(), bias), activation)

    def agrees(self, y: Tensor, o: Train, activation: str | None) -> None:
        wide = self.definition(o, [t.detach().double() for t in self.leaves(o)], activation)
        self.near(y, wide, self.off(y.dtype))

    def same(self, got: Tensor, wanted: Tensor) -> None:
        self.near(got, wanted.double(), self.off(got.dtype))  # the merges may be fused

    def test_autocast(self) -> None:
        o = self.draw(self.few[0], torch.float32)
        with torch.autocast("cuda", torch.bfloat16):
            y = self.run(o, "gelu")
        assert y.dtype is torch.bfloat16
        eager = self.run(self.draw(self.few[0], torch.bfloat16), "gelu")
        self.near(y, eager.double(), self.off(y.dtype))


def test_which_trains_the_kernel_takes() -> None:
    taken = {}
    for name in TRAINS:
        cores = drawn(name, torch.bfloat16, 1).cores
        taken[name] = served_cut(reference.sizes_of(cores), 300, torch.bfloat16) is not None
    assert taken == dict(zip(TRAINS, (True, True, True, False, False), strict=True))


def test_a_step_keeps_less_than_the_dense_layer_holds() -> None:
    x, _, cores = drawn("8^4, rank 8", torch.bfloat16, 4096)
    for core in cores:
        core.requires_grad_()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    y = tt_linear(x, cores)
    # The output, and the merged factors, 16 x 64 x 64 numbers at the most each.
    assert torch.cuda.memory_allocated() - before <= y.numel() * 2 + 2**20


def test_a_layer_on_a_gpu_has_the_path() -> None:
    cores = drawn("uneven", torch.float32, 1).cores
    factors = TTMatrix(tuple(core.cpu() for core in cores), (1250, 1500))  # padded in both
    layer = FactoredLinear.from_factors(factors, like=nn.Linear(1500, 1250))
    assert "fused" not in layer.paths
    layer = layer.cuda()
    layer.path_table = PathTable.single("fused")
    x = torch.randn(7, 1500, device="cuda")
    wide = F.linear(x.double(), layer.weight.double(), layer.bias.double())
    NormLaws().near(layer(x), wide, 8 * roundoff(torch.float32) + 1e-5)
