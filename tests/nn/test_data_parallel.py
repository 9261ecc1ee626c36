"""Data-parallel training waits for a gradient of every parameter: each has one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import tensorlrf
from tensorlrf.factors import BlockLowRank
from tensorlrf.nn import FactoredLayer, FactoredLinear, factorize

METHODS = ("svd", "cp", "tucker", "kron", "tt", "tr", "blr", "hierarchical", "monarch", "blast")


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A group of this process only."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def without_dense_blocks() -> FactoredLinear:
    left, right = torch.randn(8, 2), torch.randn(2, 8)
    tiles = [(i, j, (left, right)) for i in (0, 8) for j in (0, 8)]
    return FactoredLinear(BlockLowRank.pack(tiles, (16, 16)))


def dense_blocks_only() -> FactoredLinear:
    tiles = [(i, j, torch.randn(8, 8)) for i in (0, 8) for j in (0, 8)]
    return FactoredLinear(BlockLowRank.pack(tiles, (16, 16)))


def layers() -> list[FactoredLayer]:
    torch.manual_seed(0)
    return [
        *(factorize(nn.Linear(16, 16), method, 0.9, leaf=4) if method == "hierarchical"
          else factorize(nn.Linear(16, 16), method, 0.5) for method in METHODS),
        without_dense_blocks(),
        dense_blocks_only(),
    ]  # fmt: skip


def test_every_parameter_has_elements_and_gets_a_gradient() -> None:
    for layer in layers():
        layer(torch.randn(3, 16)).sum().backward()
        for name, parameter in layer.named_parameters():
            assert parameter.numel(), name
            assert parameter.grad is not None, name


@pytest.mark.usefixtures("alone")
def test_two_steps_of_data_parallel_training() -> None:
    for layer in layers():
        model = DistributedDataParallel(nn.Sequential(layer))
        step = torch.optim.SGD(model.parameters(), 0.01)
        for _ in range(2):
            before = [p.detach().clone() for p in model.parameters()]
            step.zero_grad()
            model(torch.randn(3, 16)).square().sum().backward()
            step.step()
            for old, parameter in zip(before, model.parameters(), strict=True):
                assert not torch.equal(old, parameter)


@pytest.mark.parametrize("make", [without_dense_blocks, dense_blocks_only])
def test_tensors_without_elements_are_kept_moved_and_saved(
    make: Callable[[], FactoredLinear], tmp_path: Path
) -> None:
    layer = make()
    assert layer.factors.tensors().keys() == {"left", "right", "dense"}
    x = torch.randn(3, 16)
    assert layer.double().factors.dtype == torch.float64
    layer.float()
    twin = make()
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin(x), layer(x))
    model = nn.Sequential(layer)
    tensorlrf.save(model, tmp_path / "model.safetensors")
    for target in (nn.Sequential(nn.Linear(16, 16, bias=False)), nn.Sequential(make()), model):
        again = tensorlrf.load(tmp_path / "model.safetensors", target)
        assert torch.equal(again(x), layer(x))
