"""Thirty architectures are compressed, saved, exported and compiled; three of them by default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tensorlrf import compress, export, load, save
from tests.architectures.inputs import Architecture, Batch
from tests.architectures.listed import ARCHITECTURES
from tests.compression.networks import Snapshot, check_report, factored_names

FAST = ("OPT", "ViT", "RoBERTa")
"""A decoder, a picture's model and an encoder."""

pytestmark = [
    # A few rows per batch, so that a test takes a second.
    pytest.mark.filterwarnings("ignore:calibration is thin"),
    # Of transformers: a router sends an expert nothing; what torch.compile makes of its caches.
    pytest.mark.filterwarnings("ignore:calibration does not reach"),
    pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`"),
]

EACH = [
    pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in ARCHITECTURES
]


@pytest.fixture(params=EACH)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return ARCHITECTURES[request.param]


def outputs(model: nn.Module, batch: Batch) -> tuple[Any, list[Tensor]]:
    """Their structure, and the tensors in it; caches of keys are made of what is returned else."""
    torch.manual_seed(0)
    with torch.no_grad():
        given: Any = model(**batch)
    assert isinstance(given, dict)
    answer = {k: v for k, v in given.items() if k not in ("past_key_values", "cache_params")}
    leaves, structure = pytree.tree_flatten(answer)
    return structure, [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def check_same(got: tuple[Any, list[Tensor]], wanted: tuple[Any, list[Tensor]]) -> None:
    """The same bits."""
    assert got[0] == wanted[0]
    for one, other in zip(got[1], wanted[1], strict=True):
        assert torch.equal(one, other)


def check_near(got: tuple[Any, list[Tensor]], wanted: tuple[Any, list[Tensor]]) -> None:
    """The same within float32's rounding in a few dozen layers, relative to the largest entry."""
    assert got[0] == wanted[0]
    for one, other in zip(got[1], wanted[1], strict=True):
        assert one.shape == other.shape
        if one.is_floating_point():
            bound = 1e-4 * float(other.abs().max())
            assert float((one - other).abs().max()) <= bound
        else:
            assert torch.equal(one, other)


def test_compress(architecture: Architecture, tmp_path: Path) -> None:
    model, batches = architecture.model(), architecture.batches()
    batch = architecture.batches(1, seed=2)[0]
    dense = outputs(model, batch)
    before = Snapshot(model)
    small, report = compress(model, keep_params=0.6, calibration=batches, progress=False)
    before.check()
    check_same(outputs(model, batch), dense)
    check_report(model, small, report)
    assert report.eligible.share <= 0.6
    wanted = outputs(small, batch)
    assert wanted[0] == dense[0]
    for one, other in zip(wanted[1], dense[1], strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        assert bool(torch.isfinite(one).all())

    save(small, tmp_path / "small.safetensors")
    check_same(outputs(load(tmp_path / "small.safetensors", model), batch), wanted)
    exported = export(small)
    assert not any(type(m).__module__.startswith("tensorlrf") for m in exported.modules())
    check_near(outputs(exported, batch), wanted)
    check_near(outputs(compiled(small), batch), wanted)


def test_compress_without_data(architecture: Architecture) -> None:
    model, (batch,) = architecture.model(), architecture.batches(1)
    small, report = compress(
        model, keep_params=0.6, include=["embeddings", "heads"], skip=[], progress=False
    )
    # Of a table and the head on it there is one row that is factored, and two layers.
    assert {row.name for row in report.layers if row.factored} <= factored_names(small)
    assert report.model.params_after == sum(p.numel() for p in small.parameters())
    assert report.eligible.share <= 0.6
    for one in outputs(small, batch)[1]:
        assert bool(torch.isfinite(one).all())


def compiled(model: nn.Module) -> nn.Module:
    torch._dynamo.reset()
    # torch types what it gives as a callable; of a module it is one.
    return torch.compile(model, backend="eager", dynamic=False)  # type: ignore[return-value]
