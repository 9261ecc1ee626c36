"""Moments in the place of calibration: fits are those that batches would give, without any pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf.compression import Moments, Report
from tensorlrf.errors import ArgumentError, CalibrationWarning
from tests.compression.moments.nets import attention, convolutions, images, one_way, routed, rows

FROM_BATCHES: dict[str, Any] = {
    "target": "independent", "metric": "outputs", "allocation": "uniform", "holdout": 0.0,
}  # fmt: skip
"""Of `compress` with batches: what moments are for."""


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach() for name, t in model.state_dict().items()}


def many(n: int) -> list[Tensor]:
    draws = torch.Generator().manual_seed(3)
    return [torch.randn(100, n, generator=draws) * torch.linspace(2, 0.1, n) for _ in range(2)]


@pytest.mark.parametrize("affine", [False, True])
def test_fits_are_those_of_the_batches(affine: bool, tmp_path: Path) -> None:
    model, batches = attention(16), many(16)
    path = tmp_path / "moments.safetensors"
    moments = tensorlrf.calibrate(model, batches, skip=[])
    moments.save(path)
    wanted, told = tensorlrf.compress(
        model, keep_params=0.6, skip=[], calibration=batches, affine=affine, **FROM_BATCHES
    )
    for given in (moments, path, str(path)):
        small, report = tensorlrf.compress(
            model, keep_params=0.6, skip=[], moments=given, affine=affine
        )
        for name, tensor in weights(wanted).items():
            assert torch.equal(weights(small)[name], tensor), name
        assert [r.output_error for r in report.layers] == [r.output_error for r in told.layers]
    assert report.from_moments
    assert (report.target, report.metric, report.batches) == ("independent", "outputs", 2)
    assert "2 batches in given moments" in str(report)
    assert Report.from_json(report.to_json()) == report


def test_convolutions_are_fitted_up_to_the_order_of_sums(tmp_path: Path) -> None:
    model, batches = convolutions(), images(40)
    moments = tensorlrf.calibrate(model, batches, skip=[])
    moments.save(tmp_path / "m.safetensors")
    arguments: dict[str, Any] = {"keep_params": 0.5, "skip": [], "method": "svd"}
    wanted, _ = tensorlrf.compress(model, calibration=batches, **arguments, **FROM_BATCHES)
    small, report = tensorlrf.compress(model, moments=tmp_path / "m.safetensors", **arguments)
    assert any(row.data_aware for row in report.layers)
    x = torch.cat([batches[0], batches[2]])
    torch.testing.assert_close(small(x), wanted(x), rtol=1e-4, atol=1e-5)  # float32 outputs


def test_a_plan_is_carried_out_with_them() -> None:
    model = attention(16)
    plan = tensorlrf.plan(model, keep_params=0.6, skip=[])
    moments = tensorlrf.calibrate(model, many(16), skip=[])
    one, _ = tensorlrf.apply(model, plan, moments=moments)
    two, _ = tensorlrf.compress(model, keep_params=0.6, skip=[], moments=moments)
    for name, tensor in weights(one).items():
        assert torch.equal(weights(two)[name], tensor)
    other = attention(16)
    report = tensorlrf.compress_(other, keep_params=0.6, skip=[], moments=moments)
    assert report.from_moments
    for name, tensor in weights(one).items():
        assert torch.equal(weights(other)[name], tensor)


def test_ranks_are_shared_out_by_what_outputs_lose() -> None:
    """As by the batches that the moments are of."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.falls, self.white = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.white(x) + self.falls(x * torch.logspace(0, -3, 64))
            return y

    draws, model = torch.Generator().manual_seed(0), Two()
    with torch.no_grad():
        for layer in (model.falls, model.white):
            layer.weight[:] = torch.linalg.qr(torch.randn(64, 64, generator=draws))[0]
    batches = [torch.randn(400, 64, generator=draws)]
    moments = tensorlrf.calibrate(model, batches, skip=[])
    arguments: dict[str, Any] = {"keep_params": 0.5, "skip": [], "allocation": "energy"}
    told = tensorlrf.plan(model, moments=moments, **arguments)
    wanted = tensorlrf.plan(model, calibration=batches, holdout=0, **arguments)
    assert [row.rank for row in told.layers] == [row.rank for row in wanted.layers]
    assert told.allotment.unit == wanted.allotment.unit
    assert told.allotment.predicted_loss == pytest.approx(wanted.allotment.predicted_loss, rel=1e-3)
    plain = tensorlrf.plan(model, **arguments)
    assert [row.rank for row in plain.layers] != [row.rank for row in told.layers]
    _, report = tensorlrf.compress(model, moments=moments, **arguments)
    assert report.allotment == told.allotment
    with pytest.raises(ArgumentError, match="looks at inputs; give calibration="):
        tensorlrf.plan(model, moments=moments, **{**arguments, "allocation": "fisher"})
    with pytest.raises(ArgumentError, match="in the place of calibration="):
        tensorlrf.plan(model, moments=moments, calibration=batches, keep_params=0.5)


def test_nothing_runs() -> None:
    model = attention(16)
    moments = tensorlrf.calibrate(model, many(16), skip=[])

    def never(*_: Any) -> None:
        raise AssertionError

    model.register_forward_pre_hook(never)
    small, _ = tensorlrf.compress(model, keep_params=0.6, skip=[], moments=moments)
    assert isinstance(small[1], tensorlrf.nn.FactoredLinear)  # type: ignore[index]  # a Sequential


def test_an_error_is_one_of_outputs() -> None:
    model = nn.Sequential(nn.Linear(32, 32))
    x = torch.randn(400, 2) @ torch.randn(2, 32) + 1e-3 * torch.randn(400, 32)
    moments = tensorlrf.calibrate(model, [x], skip=[])
    _, aware = tensorlrf.compress(model, error=0.1, skip=[], moments=moments)
    _, plain = tensorlrf.compress(model, error=0.1, skip=[])
    assert aware.layer("0").params_after < plain.layer("0").params_after


def test_layers_without_any_get_the_plain_method() -> None:
    model = routed()
    moments = tensorlrf.calibrate(model, 2 * one_way(0), skip=[])
    with pytest.warns(CalibrationWarning, match="does not reach right"):
        _, report = tensorlrf.compress(model, keep_params=0.9, skip=[], moments=moments)
    assert not report.layer("right").data_aware
    assert report.layer("left").data_aware


def test_those_of_another_model_are_refused_before_any_work() -> None:
    moments = tensorlrf.calibrate(attention(16), many(16), skip=[])
    others: list[tuple[nn.Module, str]] = [
        (attention(16, seed=1), r"the weight of 0\.q has other values: .* in the moments is"),
        (attention(8), r"the weight of 0\.q is 16 x 16 in the moments and 8 x 8 in the model"),
        (nn.Sequential(nn.Linear(16, 16)), r"they have a layer 0\.q \(16 x 16\), which this model"),
    ]
    for model, why in others:
        with pytest.raises(ArgumentError, match=why):
            tensorlrf.compress(model, keep_params=0.6, skip=[], moments=moments)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"calibration": [torch.rand(4, 16)]}, "in the place of calibration="),
        ({"target": "prefix"}, "target='prefix' takes passes over batches"),
        ({"metric": "loss"}, "metric='loss' takes passes"),
        ({"shared": "inputs"}, "shared='inputs' takes passes"),
        ({"rerun": True}, "rerun=True takes passes"),
        ({"refine": 1.0}, "give calibration="),
        ({"method": "modular"}, "calibration="),
        ({"max_drop": 0.1, "evaluate": lambda model: 1.0}, "calibration="),
    ],
)
def test_what_takes_batches_is_refused(more: dict[str, Any], why: str) -> None:
    model = attention(16)
    moments = tensorlrf.calibrate(model, rows(16, 1), skip=[])
    budget = {} if "max_drop" in more else {"keep_params": 0.6}
    with pytest.raises(ArgumentError, match=why):
        tensorlrf.compress(model, moments=moments, **budget, **more)


def test_a_loaded_file_serves_the_model_in_another_dtype(tmp_path: Path) -> None:
    model = attention(16)
    tensorlrf.calibrate(model, many(16), skip=[]).save(tmp_path / "m.safetensors")
    half = attention(16).bfloat16()
    moments = Moments.load(tmp_path / "m.safetensors")
    _, report = tensorlrf.compress(half, keep_params=0.6, skip=[], moments=moments)
    assert report.layer("0.q").data_aware
