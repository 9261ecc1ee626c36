"""Layers that ranks share out: what they give, and their gradients, are those of one rank."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import parallelize_module

from tensorlrf.errors import ArgumentError
from tensorlrf.factors import BlockLowRank, KroneckerSum, LowRank
from tensorlrf.nn import FactoredLinear
from tensorlrf.nn.parallel import FactoredColwise, FactoredRowwise, styles
from tensorlrf.ops import PathTable
from tests.nn.parallel.ranks import checks_of

ROUNDING = 1e-12
"""Relative, in float64: sums of at most 100 products in another order."""

IN, OUT, RANK = 12, 20, 6


def low_rank(bias: bool = True, rank: int = RANK) -> FactoredLinear:
    f = LowRank(torch.randn(OUT, rank).double(), torch.randn(rank, IN).double())
    return FactoredLinear(f, torch.randn(OUT).double() if bias else None)


def kronecker() -> FactoredLinear:
    f = KroneckerSum(torch.randn(2, 4, 6).double(), torch.randn(2, 5, 2).double())
    return FactoredLinear(f, torch.randn(OUT).double())


def blocks() -> FactoredLinear:
    """Of unequal ranks, some dense, some without rank."""
    made: list[Any] = []
    for i, rows in ((0, 4), (4, 6), (10, 10)):
        for j in (0, 6):
            r = (i + j) % 3
            pair = torch.randn(rows, r).double(), torch.randn(r, 6).double()
            made.append((i, j, torch.randn(rows, 6).double() if i == 4 and j else pair))
    return FactoredLinear(BlockLowRank.pack(made, (OUT, IN)), torch.randn(OUT).double())


def even_blocks() -> FactoredLinear:
    made: list[Any] = [
        (i, j, (torch.randn(10, r).double(), torch.randn(r, 6).double()))
        for i, j, r in ((0, 0, 1), (0, 6, 2), (10, 0, 2), (10, 6, 2))
    ]
    return FactoredLinear(BlockLowRank.pack(made, (OUT, IN)))


MAKERS: tuple[Callable[[], FactoredLinear], ...] = (low_rank, kronecker, blocks, even_blocks)


def near(a: Tensor, b: Tensor) -> None:
    a = (a.full_tensor() if isinstance(a, DTensor) else a).detach()
    b = b.detach()
    assert a.shape == b.shape, (a.shape, b.shape)
    gap = (a - b).norm() / b.norm() if b.norm() > 0 else (a - b).norm()
    assert float(gap) <= ROUNDING, float(gap)


def mine(x: Tensor, mesh: DeviceMesh, layout: Any) -> Tensor:
    if not layout.is_shard():
        return x
    return x.chunk(mesh.size(), layout.dim)[mesh.get_local_rank()].contiguous()


def same(layer: nn.Module, alone: nn.Module) -> None:
    """The state dict of all ranks is that of one, to the bit."""
    state, one = layer.state_dict(), alone.state_dict()
    assert list(state) == list(one)
    for name, t in state.items():
        assert torch.equal(t.full_tensor() if isinstance(t, DTensor) else t, one[name]), name


def together(layer: FactoredLinear, style: Any, mesh: DeviceMesh, x: Tensor) -> None:
    """Outputs and gradients of one rank and of all."""
    alone = copy.deepcopy(layer)
    before, after = style.input_layouts[0], style.output_layouts[0]
    parallelize_module(layer, mesh, style)
    whole = x.clone().requires_grad_()
    own = mine(x, mesh, before).clone().requires_grad_()
    expected, got = alone(whole), layer(own)
    near(got, mine(expected, mesh, after))
    towards = torch.randn_like(expected)
    (expected * towards).sum().backward()
    (got * mine(towards, mesh, after)).sum().backward()
    assert whole.grad is not None
    assert own.grad is not None
    near(own.grad, mine(whole.grad, mesh, before))
    packed = isinstance(alone.factors, BlockLowRank)
    for (name, p), (_, one) in zip(layer.named_parameters(), alone.named_parameters(), strict=True):
        assert isinstance(p.grad, DTensor), name
        assert p.grad.placements == p.placements, (name, p.grad.placements)
        if not packed or name == "bias":
            near(p.grad, one.grad)
    with torch.no_grad():
        near(layer(own), mine(expected, mesh, after))
        near(layer.eval()(own), mine(expected, mesh, after))
    with torch.inference_mode():
        near(layer(own.detach()), mine(expected, mesh, after))
    same(layer, alone)


def check_colwise(mesh: DeviceMesh) -> None:
    for make in MAKERS:
        together(make(), FactoredColwise(), mesh, torch.randn(3, 5, IN).double())


def check_rowwise(mesh: DeviceMesh) -> None:
    for make in MAKERS:
        together(make(), FactoredRowwise(), mesh, torch.randn(3, 5, IN).double())


def check_inner_sharded(mesh: DeviceMesh) -> None:
    for style in (FactoredColwise(inner="sharded"), FactoredRowwise(inner="sharded")):
        for bias in (True, False):
            layer = low_rank(bias)
            together(layer, style, mesh, torch.randn(7, IN).double())
            for p in layer.parameters():
                assert p.to_local().numel() * mesh.size() == p.numel()


def check_ranks_that_are_not_divided(mesh: DeviceMesh) -> None:
    """One rank has more of a rank than the other, or all of it."""
    for rank in (5, 1):
        x = torch.randn(7, IN).double()
        together(low_rank(rank=rank), FactoredColwise(inner="sharded"), mesh, x)


def check_ranks_that_disagree(mesh: DeviceMesh) -> None:
    """All of them are told, and nothing is changed."""
    rank = RANK + mesh.get_local_rank()
    model = nn.ModuleDict({"a": low_rank(rank=rank)})
    with pytest.raises(ArgumentError, match="plan: ranks 1 of the mesh have another plan"):
        styles(model, {"a": "colwise"}, mesh)
    assert type(model["a"]) is FactoredLinear


def check_weights_and_paths(mesh: DeviceMesh) -> None:
    """The weight is the whole, as a DTensor; a path is that of this rank's part."""
    for make in (low_rank, kronecker):
        for style in (FactoredColwise(), FactoredRowwise()):
            alone = make()
            layer = copy.deepcopy(alone)
            parallelize_module(layer, mesh, style)
            near(layer.weight.clone(), alone.weight.clone())
            x = torch.randn(4, IN).double()
            own, expected = mine(x, mesh, style.input_layouts[0]), alone(x)
            assert "chain" in layer.paths
            with torch.inference_mode():
                for path in layer.paths:
                    layer.path_table = PathTable.single(path)
                    near(layer(own), mine(expected, mesh, style.output_layouts[0]))


def check_autocast(mesh: DeviceMesh) -> None:
    """In bfloat16, the bias too."""
    for make in MAKERS:
        for style in (FactoredColwise(), FactoredRowwise()):
            alone = make().float()
            layer = copy.deepcopy(alone)
            parallelize_module(layer, mesh, style)
            x = torch.randn(4, IN)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y, expected = layer(mine(x, mesh, style.input_layouts[0])), alone(x)
            assert y.dtype == expected.dtype == torch.bfloat16
            # Two products, rounded to 8 bits each.
            torch.testing.assert_close(
                y, mine(expected, mesh, style.output_layouts[0]), rtol=0.05, atol=0.3
            )


def check_layouts(mesh: DeviceMesh) -> None:
    """Rows shared out, outputs gathered, inputs split: each of the formats."""
    rows = Shard(1)
    for make in MAKERS:
        for inner in ("whole", "sharded") if make is low_rank else ("whole",):
            for style in (
                FactoredColwise(input_layouts=rows, inner=inner),
                FactoredColwise(output_layouts=Replicate(), inner=inner),
                FactoredColwise(input_layouts=Shard(-1), output_layouts=rows, inner=inner),
                FactoredRowwise(output_layouts=rows, inner=inner),
                FactoredRowwise(input_layouts=Replicate(), output_layouts=Shard(-1), inner=inner),
                FactoredRowwise(input_layouts=rows, output_layouts=rows, inner=inner),
            ):
                together(make(), style, mesh, torch.randn(3, 8, IN).double())


@pytest.mark.parametrize("name", [*checks_of(__name__), "all"])
def test_on_two_ranks(found: dict[str, str], name: str) -> None:
    wrong = found.get(name, f"not reached: {found['all']}")
    assert not wrong, wrong
