"""Layers on factors are where their layer was and of its dtype, whatever torch's defaults are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf import io
from tensorlrf.nn import factorize
from tests.torch_defaults import defaults

CPU = torch.device("cpu")


def sample(kind: str) -> tuple[nn.Module, Tensor, tuple[str, ...]]:
    """A layer, its input, and the methods that serve it."""
    torch.manual_seed(0)
    if kind == "linear":
        methods = ("svd", "cp", "tucker", "tt", "tr", "kron", "blr", "monarch", "blast")
        return nn.Linear(24, 32), torch.randn(3, 24), methods
    if kind == "embedding":
        return nn.Embedding(20, 16), torch.randint(20, (4,)), ("svd", "cp", "tucker", "tt")
    if kind == "groups":
        return nn.Conv2d(8, 16, 3, groups=2), torch.randn(2, 8, 5, 5), ("svd", "cp", "tucker")
    axes = int(kind[-1])
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes](6, 8, 3)
    methods = ("svd", "cp", "tucker", "tt", "kron") if axes == 2 else ("svd", "cp", "tucker")
    return conv, torch.randn(2, 6, *(4,) * axes), methods


@pytest.mark.parametrize("default", ["meta", "float64", "float16"])
@pytest.mark.parametrize("kind", ["linear", "conv1", "conv2", "conv3", "groups", "embedding"])
def test_of_every_layer(kind: str, default: str) -> None:
    layer, x, methods = sample(kind)
    for method in methods:
        options = {"random_state": 0} if method in ("cp", "tr", "blast") else {}
        expected = factorize(layer, method, 0.5, **options)(x)
        with defaults(default):
            factored = factorize(layer, method, 0.5, **options)
            found = factored(x)
        for tensor in (*factored.parameters(), *factored.buffers(), found):
            assert (tensor.dtype, tensor.device) == (torch.float32, CPU)
        assert torch.equal(found, expected)
        found.sum().backward()


@pytest.mark.parametrize("default", ["meta", "float64", "float16"])
def test_of_a_compressed_model_and_its_file(default: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 24))
    batches = [torch.randn(128, 24) for _ in range(3)]
    factors = tensorlrf.svd(model[0].weight.detach(), 4)
    with defaults(default):
        small, _ = tensorlrf.compress(model, keep_params=0.5, calibration=batches)
        tensorlrf.save(small, tmp_path / "model.safetensors")
        with torch.device("cpu"):
            fresh = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 24)).float()
        loaded = tensorlrf.load(tmp_path / "model.safetensors", fresh)
        io.save_factors(factors, tmp_path / "factors.safetensors")
        again = io.load_factors(tmp_path / "factors.safetensors")
        theirs = tensorlrf.factors.from_tensorly(
            tensorlrf.factors.to_tensorly(tensorlrf.tucker(model[0].weight.detach(), 4))
        )
    tensors = [*loaded.parameters(), *again.tensors().values(), *theirs.tensors().values()]
    assert {(t.dtype, t.device) for t in tensors} == {(torch.float32, CPU)}
    assert torch.equal(loaded(batches[0]), small(batches[0]))
    assert torch.equal(again.to_dense(), factors.to_dense())


@pytest.mark.parametrize("rank", [torch.tensor(0.5), torch.tensor(4)])
def test_a_rank_is_a_number_whatever_holds_it(rank: Tensor) -> None:
    layer, _, _ = sample("linear")
    expected = factorize(layer, "svd", rank.item()).factors.rank
    assert factorize(layer, "svd", rank).factors.rank == expected
