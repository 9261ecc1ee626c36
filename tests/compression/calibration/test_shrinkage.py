"""Few samples: how far moments are drawn towards the plain metric, and what a layer then loses."""

from __future__ import annotations

import json
import statistics
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tensorlrf
from tensorlrf.compression import Method, Report, compress
from tensorlrf.compression.calibration._dense_layer import dense_layer_at
from tensorlrf.compression.calibration._statistics import Stream
from tensorlrf.compression.calibration.moments._lengths import Lengths, fourth_about_mean
from tests.compression.networks import relative
from tests.draws import seeded32

METHODS: dict[str, str | Method] = {
    **{word: word for word in ("svd", "kron", "tt", "tr", "blr", "monarch", "blast")},
    "hierarchical": tensorlrf.Hierarchical(leaf=8),
    "hodlr": tensorlrf.Hierarchical(leaf=4, admissible="weak"),
}
KERNELS = ("svd", "tucker", "cp", "tt", "kron")


def fresh_errors(layer: nn.Module, method: Any, x: Tensor, fresh: Tensor) -> tuple[float, float]:
    """(on fresh inputs, fitted to x; plain) relative errors of the outputs."""
    model = nn.Sequential(layer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tensorlrf.errors.CalibrationWarning)
        served, _ = compress(model, keep_params=0.5, method=method, calibration=[x])
    plain, _ = compress(model, keep_params=0.5, method=method)
    with torch.no_grad():
        y = model(fresh)
        return relative(served(fresh), y), relative(plain(fresh), y)


def linear_case(method: Any, n: int, seed: int) -> float:
    layer = nn.Linear(n, n, bias=False)
    layer.weight.data = seeded32(n, n, seed=seed) / n**0.5
    x, fresh = seeded32(6, n, seed=seed + 100), seeded32(2000, n, seed=seed + 200)
    served, plain = fresh_errors(layer, method, x, fresh)
    return served / plain


def kernel_case(method: Any, seed: int) -> float:
    layer = nn.Conv2d(8, 12, 2, bias=False)
    layer.weight.data = seeded32(12, 8, 2, 2, seed=seed) / 6
    x, fresh = seeded32(6, 8, 2, 2, seed=seed + 100), seeded32(50, 8, 8, 8, seed=seed + 200)
    served, plain = fresh_errors(layer, method, x, fresh)
    return served / plain


@pytest.mark.parametrize("name", METHODS)
def test_six_samples_do_no_harm(name: str) -> None:
    ratios = [linear_case(METHODS[name], 32, seed) for seed in range(3)]
    assert statistics.mean(ratios) <= 1.02
    assert max(ratios) <= 1.1


@pytest.mark.parametrize("method", KERNELS)
def test_six_patches_do_no_harm(method: str) -> None:
    ratios = [kernel_case(method, seed) for seed in range(2)]
    assert statistics.mean(ratios) <= 1.02
    assert max(ratios) <= 1.1


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_six_samples_of_64_columns_do_no_harm_over_twenty_seeds(name: str) -> None:
    ratios = [linear_case(METHODS[name], 64, seed) for seed in range(20)]
    assert statistics.mean(ratios) <= 1.02
    assert max(ratios) <= 1.1


@pytest.mark.parametrize("method", ["kron", "tt", "tr", "monarch", "blast", "svd"])
def test_the_error_that_is_told_is_that_of_the_model_on_its_inputs(method: str) -> None:
    """A constant input, which leaves all other directions open."""
    layer = nn.Linear(32, 32)
    layer.weight.data, layer.bias.data = seeded32(32, 32) / 6, seeded32(32, seed=1)
    x = torch.relu(seeded32(32, seed=2)).expand(1000, 32)
    small, report = compress(nn.Sequential(layer), keep_params=0.5, method=method, calibration=[x])
    row = report.layer("0")
    with torch.no_grad():
        wanted, got = layer(x) - layer.bias, small(x) - layer.bias
        dense = small[0].factors.to_dense().detach()
    assert row.output_error == pytest.approx(relative(got, wanted), rel=1e-2, abs=1e-3)
    assert row.output_error <= 0.01
    assert float(dense.norm()) <= 2 * float(layer.weight.detach().norm())


def test_the_report_tells_the_amount_and_older_reports_still_load() -> None:
    layer = nn.Linear(32, 32)
    many = [seeded32(2000, 32) * torch.linspace(0.1, 2, 32)]
    _, report = compress(nn.Sequential(layer), keep_params=0.5, calibration=many)
    with pytest.warns(tensorlrf.errors.CalibrationWarning, match="thin"):
        _, few = compress(nn.Sequential(layer), keep_params=0.5, calibration=[many[0][:6]])
    plain = compress(nn.Sequential(layer), keep_params=0.5)[1]
    drawn, much = report.layer("0").shrinkage, few.layer("0").shrinkage
    assert drawn is not None
    assert much is not None
    assert 0 < drawn < 0.1 < much <= 1
    assert f"({much:.2g} shrunk)" in str(few)
    assert plain.layer("0").shrinkage is None
    assert Report.from_json(few.to_json()) == few
    values = json.loads(few.to_json())
    for row in values["layers"]:
        del row["shrinkage"]
    old = Report.from_json(json.dumps(values))
    assert old.layer("0") == replace(few.layer("0"), shrinkage=None)
    del values["layers"][0]["samples"]
    with pytest.raises(tensorlrf.errors.FileFormatError, match="they must be"):
        Report.from_json(json.dumps(values))


def test_held_out_inputs_choose_the_amount() -> None:
    """Twenty correlated samples fitted to, and many that tell what the fit is worth."""
    n = 48
    mixing = seeded32(n, n, seed=9) * torch.arange(1, n + 1) ** -0.7
    layer = nn.Linear(n, n, bias=False)
    layer.weight.data = seeded32(n, n, seed=1) / n**0.5
    batches = [seeded32(20, n, seed=2) @ mixing.T, seeded32(3000, n, seed=3) @ mixing.T]
    with pytest.warns(tensorlrf.errors.CalibrationWarning, match="thin"):
        _, report = compress(
            nn.Sequential(layer), keep_params=0.5, calibration=batches, holdout=0.5
        )
    alone = []
    for amount in (None, batches[0]):
        data = None if amount is None else [amount]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", tensorlrf.errors.CalibrationWarning)
            small, _ = compress(nn.Sequential(layer), keep_params=0.5, calibration=data)
        with torch.no_grad():
            alone.append(relative(small(batches[1]), layer(batches[1])))
    error = report.layer("0").output_error
    assert error is not None
    assert error <= min(alone) * (1 + 1e-4)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    size=st.sampled_from([(5,), (6, 5), (3, 4, 5)]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    seed=st.integers(0, 9),
)
def test_lengths_are_those_of_the_patches(
    size: tuple[int, ...],
    kernel: int,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    seed: int,
) -> None:
    if min(size) + 2 * padding < dilation * (kernel - 1) + 1:
        return
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(size) - 1]
    conv = kind(4, 4, kernel, stride, padding, dilation, groups)
    site = dense_layer_at(nn.Sequential(conv), "0")
    x = seeded32(3, 4, *size, seed=seed) + 0.3
    taps = site.taps
    assert taps is not None
    stream = Stream(site, lags=False)
    stream.add(x)
    for part, found in zip(x.chunk(groups, 1), stream.statistics(), strict=True):
        one = taps.one_group()
        rows = one.patches(one.padded(part.double())).reshape(-1, one.patch)
        squares = rows.square().sum(1)
        assert found.inputs.fourth == pytest.approx(float(squares.square().mean()), rel=1e-5)
        # Sums in float32 over the places of a batch, whose terms have either sign.
        torch.testing.assert_close(
            found.inputs.cubes, (squares[:, None] * rows).mean(0), rtol=1e-4, atol=1e-4
        )
        about = (rows - rows.mean(0)).square().sum(1).square().mean()
        assert found.inputs.centred().fourth == pytest.approx(float(about), rel=1e-3, abs=1e-5)


def test_lengths_of_huge_inputs_stay_finite() -> None:
    lengths = Lengths(4, torch.device("cpu"))
    lengths.add(1e15 * seeded32(7, 4))
    lengths.add(torch.zeros(0, 4))
    lengths.add(torch.zeros(3, 4))
    assert torch.isfinite(lengths.fourth)
    assert torch.isfinite(lengths.cubes).all()
    zeros = torch.zeros(4, dtype=torch.float64)
    assert fourth_about_mean(2.0, zeros, torch.zeros(4, 4).double(), zeros) == 2.0
