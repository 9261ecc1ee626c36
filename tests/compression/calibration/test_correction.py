"""The target "original": what earlier layers lost is made good as far as the inputs tell."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tensorlrf.compression import compress
from tensorlrf.compression.calibration._correction import (
    LagMoments,
    OutputLags,
    corrected,
    lag_moments,
)
from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.calibration._statistics import OutputError, Stream
from tensorlrf.compression.calibration.moments._moments import Moments, moments_of
from tensorlrf.errors import ArgumentError
from tests.compression.calibration.unfolded import outputs
from tests.draws import seeded


def accumulators(layer: nn.Module) -> tuple[Moments, LagMoments]:
    site = DenseLayer.of(layer)
    return moments_of(site), lag_moments(site.weight, site.taps)


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Linear | nn.Conv2d, tuple[int, ...]]:
    """(a layer, the shape of an input)."""
    if draw(st.booleans()):
        return nn.Linear(5, 4, dtype=torch.float64), (7, 3, 5)
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = draw(st.sampled_from([0, (1, 2), "same", "valid"]))
    conv = nn.Conv2d(
        3,
        4,
        kernel,
        stride=1 if padding == "same" else draw(st.integers(1, 2)),
        padding=padding,
        dilation=draw(st.integers(1, 2)),
        padding_mode=draw(st.sampled_from(["zeros", "reflect", "circular"])),
        dtype=torch.float64,
    )
    return conv, (2, 3, 9, 8)


# torch says once that an even kernel with padding="same" costs it a copy.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@settings(max_examples=40, deadline=None, derandomize=True)
@given(layers(), st.integers(0, 3))
def test_moments_tell_the_error_of_any_weight(
    case: tuple[nn.Linear | nn.Conv2d, tuple[int, ...]], seed: int
) -> None:
    layer, shape = case
    weight = seeded(*layer.weight.shape, seed=seed)
    layer.weight.data.copy_(weight)
    site = DenseLayer.of(layer)
    stream = Stream(site, lags=True)
    lost = total = 0.0
    other = seeded(*layer.weight.shape, seed=seed + 7)
    for k in range(2):
        x0 = seeded(*shape, seed=10 + k)
        x = x0 + 0.3 * seeded(*shape, seed=20 + k)
        stream.add(x, x0)
        with torch.no_grad():
            y0 = outputs(layer, weight, x0)
            lost += float((y0 - outputs(layer, other, x)).square().sum())
            total += float(y0.square().sum())
    (statistics,) = stream.statistics()
    measured = OutputError([weight], [statistics]).of([other])
    assert measured == pytest.approx(math.sqrt(lost / total), rel=1e-10)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(0, 8), st.integers(0, 99))
def test_lags_of_inputs_are_those_of_outputs(n: int, more: int, seed: int) -> None:
    """Both accumulators, of which the cheaper one is taken, stream the same moments."""
    weight = seeded(n + more, n, seed=seed)
    by_inputs, by_outputs = lag_moments(weight, None), OutputLags(weight, None)
    assert not isinstance(by_inputs, OutputLags)
    for k in range(2):
        x, x0 = seeded(5, 3, n, seed=seed + k), seeded(5, 3, n, seed=seed + 10 + k)
        for moments in (by_inputs, by_outputs):
            moments.add(x, x0)
    first, second = by_inputs.lag(), by_outputs.lag()
    assert by_inputs.count == by_outputs.count == 30
    torch.testing.assert_close(first.cross, second.cross, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(first.mean, second.mean, rtol=1e-12, atol=1e-12)
    assert first.lost == pytest.approx(second.lost, rel=1e-12)


def test_corrected_weight_is_the_least_squares_one() -> None:
    """Without a ridge it solves the normal equations, so no other weight has less error."""
    layer = nn.Linear(6, 4, dtype=torch.float64)
    x0 = seeded(200, 6)
    x = x0 @ seeded(6, 6, seed=1) + 0.5 * seeded(200, 6, seed=2)
    moments, lags = accumulators(layer)
    moments.add(x)
    lags.add(x, x0)
    best = corrected(layer.weight.detach(), moments.gram(), lags.lag(), ridge=0.0)
    expected = torch.linalg.lstsq(x, x0 @ layer.weight.detach().T).solution.T
    # 200 float64 terms, times the squared condition number of x, about 35: 2e-12.
    torch.testing.assert_close(best, expected, rtol=1e-11, atol=1e-11)


def test_ridge_draws_towards_the_given_weight() -> None:
    layer = nn.Linear(6, 4, dtype=torch.float64)
    x0 = seeded(50, 6)
    moments, lags = accumulators(layer)
    moments.add(x0 + seeded(50, 6, seed=1))
    lags.add(x0 + seeded(50, 6, seed=1), x0)
    weight = layer.weight.detach()
    distances = [
        float((corrected(weight, moments.gram(), lags.lag(), ridge=r) - weight).norm())
        for r in (0.0, 0.01, 1.0, 100.0)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.05 * distances[0]


def test_nothing_is_corrected_where_nothing_was_lost() -> None:
    layer = nn.Conv2d(3, 4, 3, dtype=torch.float64)
    x = seeded(2, 3, 8, 8)
    moments, lags = accumulators(layer)
    moments.add(x)
    lags.add(x, x)
    weight = layer.weight.detach()
    assert torch.equal(corrected(weight, moments.gram(), lags.lag()), weight)


def deep(seed: int) -> nn.Sequential:
    """Ten 3x3 convs of 16 channels; the weights do not depend on the global generator."""
    parts: list[nn.Module] = []
    for k in range(10):
        conv = nn.Conv2d(16, 16, 3, padding=1)
        conv.weight.data.copy_(seeded(16, 16, 3, 3, seed=100 * seed + k) / math.sqrt(72))
        conv.bias.data.zero_()
        parts += [conv, nn.ReLU(inplace=True)]
    return nn.Sequential(*parts).eval()


def scenes(seed: int, n: int) -> list[Tensor]:
    """Smooth inputs, so that the layers' inputs are correlated."""
    return [
        torch.nn.functional.interpolate(
            seeded(1, 16, 5, 5, seed=seed + k).float(), size=(20, 20), mode="bilinear"
        )
        for k in range(n)
    ]


def test_it_lowers_the_error_of_a_deep_network() -> None:
    ratios = []
    for seed in range(2):
        model, batches = deep(seed), scenes(1000 * seed, 8)
        errors = {}
        for target in ("prefix", "original"):
            small, _ = compress(model, keep_params=0.5, calibration=batches, target=target)
            with torch.no_grad():
                held_out = torch.cat(scenes(1000 * seed + 500, 8))
                y = model(held_out.clone())
                errors[target] = float((small(held_out.clone()) - y).norm() / y.norm())
        ratios.append(errors["original"] / errors["prefix"])
    assert max(ratios) < 0.95, ratios


@pytest.mark.filterwarnings("ignore::tensorlrf.errors.ConvergenceWarning")  # of cp, either way
@pytest.mark.parametrize("method", ["svd", "tucker", pytest.param("cp", marks=pytest.mark.slow)])
def test_both_ways_of_calibrating_agree(method: str) -> None:
    model, batches = deep(0)[:5], scenes(0, 3)
    results = [
        compress(
            model,
            keep_params=0.5,
            method=method,
            calibration=batches,
            target="original",
            rerun=rerun,
        )
        for rerun in (False, True)
    ]
    x = scenes(50, 1)[0]
    assert torch.equal(results[0][0](x.clone()), results[1][0](x.clone()))
    assert [r.output_error for r in results[0][1].layers] == [
        r.output_error for r in results[1][1].layers
    ]


def test_the_given_model_is_not_changed() -> None:
    model = deep(0)[:4]
    before = {name: t.clone() for name, t in model.state_dict().items()}
    compress(model, keep_params=0.5, calibration=scenes(0, 3), target="original")
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_an_unknown_target_is_named() -> None:
    with pytest.raises(ArgumentError, match=r"target='dense' is unknown; choose one of original, "):
        compress(deep(0), keep_params=0.5, target="dense")


class Fickle(nn.Module):
    """Calls `late` only once what `early` gives is no longer what it was; then `last`, n times."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.early, self.late, self.last = (nn.Linear(16, 16, bias=False) for _ in range(3))
        self.given = seeded(99, 16).float()
        self.passed = self.early(self.given).detach()

    def forward(self, x: Tensor) -> Tensor:
        x = self.early(x)
        # Compressed, its input is off by far more than rounding: so it takes another course.
        x = x if torch.allclose(x, self.passed, atol=1e-4) else self.late(x)
        for _ in range(self.n):
            x = self.last(x)
        return x


def test_a_layer_that_only_the_compressed_model_calls_is_fitted_to_what_it_gets() -> None:
    model = Fickle(1)
    _, report = compress(model, keep_params=0.6, calibration=[model.given], target="original")
    assert report.layer("late").data_aware


def test_another_course_through_a_layer_that_is_called_twice_is_named() -> None:
    model = Fickle(2)
    with pytest.raises(ArgumentError, match=r"late.*use target='prefix'"):
        compress(model, keep_params=0.6, calibration=[model.given], target="original")
