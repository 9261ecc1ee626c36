"""Models that two ranks train, save and load, and how near they have to stay to those of one."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from tests.nn.parallel.networks import WIDTH, Block, Everything, blocks

ROUNDING = 1e-11
"""Relative, in float64: three steps of AdamW divide by gradients, which are sums in another
order."""

FULL = StateDictOptions(full_state_dict=True)


def everything() -> Everything:
    """The same each time, on each rank, whatever the decompositions draw."""
    return copy.deepcopy(_everything())


@cache
def _everything() -> Everything:
    torch.manual_seed(1)
    model = Everything()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.4)
    return model


def two_blocks() -> nn.Sequential:
    torch.manual_seed(1)
    return blocks()


def shard(model: nn.Module, mesh: DeviceMesh | None = None) -> nn.Module:
    for module in [*model.children()]:
        # Torch warns of layers that give views, as convolutions on factors and LSTMs do.
        if isinstance(module, Block):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def full(model: nn.Module) -> dict[str, Tensor]:
    return dict(get_model_state_dict(model, options=FULL))


def near(state: dict[str, Any], other: dict[str, Any]) -> None:
    assert state.keys() == other.keys()
    for name, t in state.items():
        if isinstance(t, Tensor):
            gap, size = (float(x.detach().norm()) for x in (t - other[name], other[name]))
            assert gap <= ROUNDING * size, (name, gap)
        else:
            assert t == other[name], name


def trained(model: nn.Module, inputs: Tensor, wanted: Tensor, steps: int = 3) -> torch.optim.AdamW:
    optimiser = torch.optim.AdamW(model.parameters(), 0.01)
    for _ in range(steps):
        optimiser.zero_grad()
        (model(inputs) - wanted).square().mean().backward()
        optimiser.step()
    return optimiser


def data(mesh: DeviceMesh) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """All of it, and this rank's."""
    ids, wanted = torch.randint(24, (6, 5)), torch.randn(6, 3, dtype=torch.float64)
    k = mesh.get_local_rank()
    return (ids, wanted), (ids.chunk(2)[k], wanted.chunk(2)[k])


def sequences() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 5, WIDTH).double(), torch.randn(2, 5, WIDTH).double()
