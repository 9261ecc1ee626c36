"""What holds of every architecture: it is compressed, saved, loaded, exported and compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tensorlrf import compress, export, load, save
from tests.architectures.inputs import Architecture, Batch
from tests.compression.networks import Snapshot, check_report, factored_names


def check_compress(architecture: Architecture, folder: Path) -> None:
    """With calibration: finite outputs of the same form, the same bits from a file, the same
    outputs of what is exported and compiled, and the given model as it was."""
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

    save(small, folder / "small.safetensors")
    check_same(outputs(load(folder / "small.safetensors", model), batch), wanted)
    exported = export(small)
    assert not any(type(m).__module__.startswith("tensorlrf") for m in exported.modules())
    check_near(outputs(exported, batch), wanted)
    check_near(outputs(compiled(small), batch), wanted)


def check_compress_without_data(architecture: Architecture) -> None:
    """With embeddings and heads: finite outputs, and as many parameters as the report says."""
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


def outputs(model: nn.Module, batch: Batch) -> tuple[Any, list[Tensor]]:
    """Their structure, and the tensors in it; caches of keys are made of what is returned else."""
    torch.manual_seed(0)
    with torch.no_grad():
        given: Any = model(**batch)
    assert isinstance(given, (dict, Tensor))
    caches = ("past_key_values", "cache_params")
    answer = given if isinstance(given, Tensor) else {k: given[k] for k in given if k not in caches}
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


def compiled(model: nn.Module) -> nn.Module:
    torch._dynamo.reset()
    # torch types what it gives as a callable; of a module it is one.
    return torch.compile(model, backend="eager", dynamic=False)  # type: ignore[return-value]
