"""Structured formats through plan, fit, files and export."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf.compression import BLR, SVD, TR, TT, Auto, Blast, Hierarchical, Kron, Method, Monarch
from tensorlrf.errors import ArgumentError
from tensorlrf.nn import FactoredLayer

METHODS: list[Method] = [
    Kron(shapes=((4, 6), (6, 4))),
    TT(),
    TR(n_iter_max=5),
    BLR(block=8, n_iter_max=2),
    Hierarchical(leaf=6, n_iter_max=2),
    Monarch(blocks=(4, 4), n_iter_max=2),
    Blast(blocks=(2, 2), n_iter_max=3),
]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24)).eval()


def convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 8, 3, stride=2)
    return nn.Sequential(*layers).eval()


def inputs(n: int, *size: int) -> list[Tensor]:
    draws = torch.Generator().manual_seed(1)
    scales = torch.logspace(0, -1.5, size[0]).reshape(-1, *(1,) * (len(size) - 1))
    return [torch.randn(16, *size, generator=draws) * scales for _ in range(n)]


def factored(model: nn.Module) -> list[FactoredLayer]:
    return [m for m in model.modules() if isinstance(m, FactoredLayer)]


def leaves_as_it_was(small: nn.Module, x: Tensor) -> None:
    """Dense and exported, in float64, the outputs are the same to its rounding."""
    wide = copy.deepcopy(small).double()
    y = wide(x.double())
    for left in (tensorlrf.densify(wide), tensorlrf.export(wide)):
        # Two layers, each summed in another order: far below the 1e-7 of float32.
        torch.testing.assert_close(left(x.double()), y, rtol=1e-11, atol=1e-11)


@pytest.mark.filterwarnings("ignore::tensorlrf.errors.CalibrationWarning")
@pytest.mark.parametrize("target", ["original", "prefix", "independent", None])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.word)
def test_linear_layers_end_to_end(method: Method, target: str | None, tmp_path: Path) -> None:
    model = network()
    options: dict[str, Any] = {} if target is None else {"calibration": inputs(10, 24)}
    if target is not None:
        options["target"] = target
    small, report = tensorlrf.compress(
        model, keep_params=0.6, method=method, progress=False, skip=[], **options
    )
    layers = factored(small)
    assert len(layers) == 2
    assert report.eligible.share <= 0.6
    for layer in layers:
        assert type(layer.factors).format in ("kron", "tt_matrix", "tr", "blr", "monarch", "blast")
    x = inputs(1, 24)[0]
    y = small(x)
    tensorlrf.save(small, tmp_path / "small.safetensors")
    again = tensorlrf.load(tmp_path / "small.safetensors", network())
    assert torch.equal(again(x), y)
    assert not factored(tensorlrf.export(small))
    leaves_as_it_was(small, x)
    assert tensorlrf.inspect(tmp_path / "small.safetensors").layers


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.word)
def test_data_lowers_the_error_of_the_outputs(method: Method) -> None:
    model, batches = network(), inputs(40, 24)
    options: dict[str, Any] = {"keep_params": 0.5, "method": method, "skip": [], "progress": False}
    x = torch.cat(batches)
    model.requires_grad_(False)
    small, _ = tensorlrf.compress(
        model, calibration=batches, target="independent", holdout=0.0, **options
    )
    given, _ = tensorlrf.compress(model, **options)
    first = model[0](x)
    lost = [float((m[0](x) - first).norm() / first.norm()) for m in (small, given)]
    assert lost[0] < lost[1]


@pytest.mark.filterwarnings("ignore::tensorlrf.errors.CalibrationWarning")
@pytest.mark.parametrize("aware", [False, True])
@pytest.mark.parametrize("method", [Kron(), TT()], ids=lambda m: m.word)
def test_convolutions_end_to_end(method: Method, aware: bool, tmp_path: Path) -> None:
    model = convolutional()
    options: dict[str, Any] = {"calibration": inputs(10, 8, 9, 9)} if aware else {}
    small, report = tensorlrf.compress(
        model, keep_params=0.5, method=method, progress=False, skip=[], **options
    )
    assert len(factored(small)) == 2
    assert report.eligible.share <= 0.5
    x = inputs(1, 8, 9, 9)[0]
    y = small(x)
    tensorlrf.save(small, tmp_path / "small.safetensors")
    again = tensorlrf.load(tmp_path / "small.safetensors", convolutional())
    assert torch.equal(again(x), y)
    leaves_as_it_was(small, x)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.word)
def test_a_plan_survives_its_json(method: Method) -> None:
    plan = tensorlrf.plan(network(), keep_params=0.5, method=method, skip=[])
    ranks = [row.method.rank for row in plan.factored if row.method is not None]
    assert [row.method for row in plan.factored] == [replace(method, rank=rank) for rank in ranks]
    assert tensorlrf.Plan.from_json(plan.to_json()) == plan
    assert method.word in str(plan)


def test_an_error_is_kept() -> None:
    model = network()
    for method in (Kron(), TT(), BLR(block=8), Monarch(blocks=(4, 4))):
        small, report = tensorlrf.compress(
            model, method={"0": method.with_budget(error=0.6), "2": None}, progress=False, skip=[]
        )
        for layer in factored(small):
            assert layer.factors.rel_error(model[0].weight) <= 0.6
        row = report.layer("0")
        assert row.factored or "no smaller form" in (row.reason or "")


def test_layers_that_cannot_have_a_format_stay_with_the_reason() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 24), nn.Linear(24, 24))
    plan = tensorlrf.plan(model, keep_params=0.5, method="blr", skip=[])
    assert "blr serves linear layers only" in plan.layer("0").reason
    grouped = nn.Sequential(nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3))
    plan = tensorlrf.plan(grouped, keep_params=0.5, method="kron", skip=[])
    assert plan.layer("0").method is not None  # the groups side by side
    plan = tensorlrf.plan(grouped, keep_params=0.5, method={"1": "kron", "0": "blr"}, skip=[])
    assert "blr serves linear layers only" in plan.layer("0").reason
    with pytest.raises(ArgumentError, match="blr serves linear layers only"):
        plan.edit("1", method="blr")


def test_auto_may_choose_a_structured_format() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 4, 6), torch.randn(2, 6, 4)
    model = nn.Sequential(nn.Linear(24, 24))
    with torch.no_grad():
        model[0].weight.copy_(torch.kron(a[0], b[0]) + torch.kron(a[1], b[1]))
    method = Auto(candidates=(SVD(), Kron(shapes=((4, 6), (6, 4)))))
    small, _ = tensorlrf.compress(model, keep_params=0.4, method=method, skip=[], progress=False)
    (layer,) = factored(small)
    assert type(layer.factors).format == "kron"
    assert layer.factors.rel_error(model[0].weight) < 1e-5
