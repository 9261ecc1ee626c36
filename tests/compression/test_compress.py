"""compress: the bound holds, the model given stays as it is, and data-aware is worth it."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tensorlrf.compression import SVD, Tucker, compress
from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.calibration._layer_moments import LayerMoments
from tensorlrf.compression.calibration._statistics import OutputError
from tensorlrf.compression.fit._factor import factor
from tensorlrf.compression.fit._factored import Options
from tensorlrf.decomposition import cp
from tensorlrf.decomposition.cp import _cp
from tensorlrf.errors import ArgumentError, ConvergenceWarning, DegenerateWarning, warn
from tensorlrf.factors import Factors
from tensorlrf.nn import FactoredConv2d, FactoredLayer, FactoredLinear
from tests.compression.networks import UNIFORM, Snapshot
from tests.draws import seeded32

METHODS = ("svd", "tucker", "cp")
QUICK = ["svd", "tucker", pytest.param("cp", marks=pytest.mark.slow)]


def cnn(width: int = 16, depth: int = 2) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
    for _ in range(depth):
        layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding="same")]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def images(n: int, seed: int = 0) -> Tensor:
    """Smooth pictures, so that neighbouring taps are correlated."""
    return nn.functional.interpolate(
        seeded32(n, 3, 5, 5, seed=seed), size=(12, 12), mode="bilinear"
    )


layers = st.one_of(
    st.builds(nn.Linear, st.integers(2, 60), st.integers(2, 60), bias=st.booleans()),
    st.builds(nn.Conv2d, st.integers(1, 24), st.integers(2, 24), st.sampled_from([1, 3, (1, 5)])),
)


@given(
    st.lists(layers, min_size=1, max_size=4),
    st.floats(0.05, 1.0),
    st.sampled_from(["svd", "tucker"]),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_the_share_is_an_upper_bound(drawn: list[nn.Module], keep: float, method: str) -> None:
    model = nn.Sequential(*drawn)
    try:
        small, report = compress(model, keep_params=keep, method=method)
    except ArgumentError:
        # Nothing to factor, or not even rank one everywhere: both have tests of their own.
        return
    before = after = 0
    for row in report.layers:
        assert row.factored != bool(row.reason)
        if not row.eligible:
            continue
        dense = model.get_submodule(row.name).weight
        assert isinstance(dense, Tensor)
        new = small.get_submodule(row.name)
        stored = new.factors.n_params if isinstance(new, FactoredLayer) else dense.numel()
        assert row.params_before == dense.numel()
        assert row.params_after == stored
        assert not row.factored or stored < dense.numel()
        before, after = before + dense.numel(), after + stored
    assert after <= keep * before * (1 + 1e-9)
    assert report.eligible.params_after == after


def test_ranks_are_multiples_of_eight_and_the_share_is_used() -> None:
    _, report = compress(cnn(64, 3), keep_params=0.4)
    for row in report.layers:
        assert not row.factored or (
            isinstance(row.rank, int) and (row.rank < 8 or row.rank % 8 == 0)
        )
    # What is left over is less than the smallest step that any layer could still take.
    assert 0.37 < report.eligible.share <= 0.4


@pytest.mark.filterwarnings("ignore::tensorlrf.errors.ConvergenceWarning")  # of cp
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("calibrated", [False, True])
def test_the_given_model_is_as_it_was(method: str, calibrated: bool) -> None:
    model = cnn()
    model[1].eval()
    model[3].weight.requires_grad_(False)
    model[2].register_forward_hook(lambda *_: None)
    before = Snapshot(model)
    rng = torch.get_rng_state()
    data = [images(40, seed=k) for k in range(3)] if calibrated else None
    small, _ = compress(model, keep_params=0.5, method=method, calibration=data)
    before.check()
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.is_grad_enabled()
    # The copy has its flags and shares no memory with it.
    kept = dict(small.named_modules())
    for name, module in model.named_modules():
        assert kept[name].training == module.training
    assert not any(p.requires_grad for n, p in small[3].named_parameters() if n != "bias")
    assert small[3].bias.requires_grad
    mine = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    theirs = {p.untyped_storage().data_ptr() for p in [*small.parameters(), *small.buffers()]}
    assert not mine & theirs
    # Buffers that training would move were not moved by calibration.
    for name, buffer in small.named_buffers():
        assert torch.equal(buffer, model.get_buffer(name))


@pytest.mark.parametrize("method", METHODS)
def test_the_compressed_model_trains_and_loads(method: str) -> None:
    model = cnn()
    small, report = compress(model, keep_params=0.5, method=method)
    again, _ = compress(model, keep_params=0.5, method=method)
    optimiser = torch.optim.SGD(small.parameters(), lr=1e-3)
    small(images(4)).square().sum().backward()
    for name, parameter in small.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all()
    for row in report.layers:
        if row.factored:
            layer = small.get_submodule(row.name)
            assert isinstance(layer, (FactoredLinear, FactoredConv2d))
            assert all(p.grad is not None and p.grad.any() for p in layer.parameters())
    before = small(images(4))
    optimiser.step()
    assert not torch.equal(small(images(4)), before)
    again.load_state_dict(small.state_dict())
    x = images(2, seed=5)
    assert torch.equal(again.eval()(x), small.eval()(x))
    copied = copy.deepcopy(small)
    assert torch.equal(copied(x), small(x))


@pytest.mark.filterwarnings("ignore::tensorlrf.errors.ConvergenceWarning")  # of cp
@pytest.mark.parametrize("method", QUICK)
def test_a_seed_repeats(method: str) -> None:
    model, data = cnn(), [images(64)]
    first, report = compress(model, keep_params=0.5, method=method, calibration=data)
    second, again = compress(model, keep_params=0.5, method=method, calibration=data)
    assert report == again
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@given(st.integers(0, 999), st.sampled_from(["svd", "tucker"]), st.integers(9, 14), st.booleans())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_data_aware_is_no_worse_than_plain_in_the_metric(
    seed: int, method: str, channels: int, strided: bool
) -> None:
    conv = nn.Conv2d(channels, 12, 3, stride=2 if strided else 1, padding=1)
    with torch.no_grad():
        conv.weight.copy_(seeded32(12, channels, 3, 3, seed=seed))
    mixing = seeded32(channels, channels, seed=seed + 1) * torch.linspace(0.02, 1, channels)
    x = torch.einsum("bihw,ij->bjhw", seeded32(6, channels, 9, 9, seed=seed + 2), mixing)
    site = DenseLayer.of(conv)
    seen = LayerMoments(site, lags=False, holds_out=False)
    seen.add(x, None, held=False)
    inputs = seen.fit()
    config = SVD(rank=5) if method == "svd" else Tucker(rank=(6, 7))
    aware = factor("conv", site, config, seen, Options())
    plain = factor("conv", site, config, None, Options())

    def error(factors: Factors) -> float:
        return OutputError([site.weight], inputs).of([factors])

    # Rounding of the factors to float32, relative to the outputs.
    slack = 64 * torch.finfo(torch.float32).eps
    assert error(aware.factors) <= error(plain.factors) + slack
    # The metric is the true error on the inputs that it was made of.
    with torch.no_grad():
        y = nn.functional.conv2d(x.double(), conv.weight.double(), None, conv.stride, 1)
        dense = aware.factors.to_dense().double()
        lost = y - nn.functional.conv2d(x.double(), dense, None, conv.stride, 1)
    assert aware.fit_error is not None
    assert math.isclose(aware.fit_error, float(lost.norm() / y.norm()), rel_tol=1e-4)


@pytest.mark.filterwarnings("ignore::tensorlrf.errors.ConvergenceWarning")  # of cp
def test_cp_is_fitted_to_the_inputs_of_a_convolution() -> None:
    _, plain = compress(cnn(), keep_params=0.5, method="cp")
    _, report = compress(cnn(), keep_params=0.5, method="cp", calibration=[images(64)], **UNIFORM)
    formats = {row.kind: row for row in report.layers if row.factored}
    conv, linear = formats["Conv2d"], formats["Linear"]
    assert (conv.format, conv.data_aware) == ("cp", True)
    assert conv.output_error is not None
    given = plain.layer(conv.name).weight_error
    assert given is not None
    assert conv.output_error < given < (conv.weight_error or 0)
    assert (linear.format, linear.data_aware) == ("lowrank", True)


def test_tucker_rank_shares() -> None:
    model = nn.Sequential(nn.Conv2d(64, 64, 3), nn.Conv2d(64, 64, 3))
    _, even = compress(model, keep_params=0.25, method=Tucker(rank_shares=(0.5, 0.5)))
    _, tall = compress(model, keep_params=0.25, method=Tucker(rank_shares=(1.0, 0.5)))
    for row in even.layers:
        assert isinstance(row.rank, tuple)
        assert abs(row.rank[0] - row.rank[1]) <= 8
    for row in tall.layers:
        assert isinstance(row.rank, tuple)
        assert row.rank[0] > 1.4 * row.rank[1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)).to(dtype)
    x = seeded32(256, 32).to(dtype)
    small, report = compress(model, keep_params=0.5, calibration=[x])
    assert all(p.dtype == dtype for p in small.parameters())
    assert small(x).dtype == dtype
    assert report.model.bytes_after == report.model.params_after * dtype.itemsize


def test_under_inference_mode_and_no_grad_the_result_can_be_trained() -> None:
    model = nn.Linear(32, 32)
    for context in (torch.inference_mode(), torch.no_grad()):
        with context:
            small, _ = compress(model, keep_params=0.5, calibration=[seeded32(200, 32)])
        small(seeded32(2, 32)).sum().backward()
        assert all(p.grad is not None for p in small.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_params": 0}, r"keep_params=0 must be a share in \(0, 1\]"),
        ({"keep_params": 1.01}, "keep_params=1.01"),
        ({"keep_params": -0.5}, "keep_params=-0.5"),
        ({"keep_params": float("nan")}, "keep_params=nan"),
        ({"keep_params": "half"}, "keep_params='half'"),
        ({"keep_params": True}, "keep_params=True"),
        ({"keep_params": 0.001}, r"keep_params=0\.001.*is the least"),
        ({"keep_params": 0.5, "method": "qr"}, "method='qr' is unknown.*svd, tucker, cp"),
        ({"keep_params": 0.5, "error": 0.1}, "keep_params=0.5 and error=0.1 are two budgets"),
        ({}, "no budget for 0, .*: give keep_params="),
        ({"error": 1.0}, r"error=1.0 must be a relative error in \(0, 1\)"),
        ({"keep_params": 0.5, "method": SVD(rank=4)}, "two budgets"),
        ({"keep_params": 0.5, "method": {"nine": "svd"}}, "the glob 'nine' matches no layer"),
        ({"keep_params": 0.5, "method": {}}, "method={} is empty"),
        ({"keep_params": 0.5, "method": 3}, "method is a int"),
        ({"keep_params": 0.5, "target": "nearest"}, "target='nearest'"),
        (
            {"keep_params": 0.5, "target": "prefix"},
            "target='prefix' is of a fit to inputs; give cal",
        ),
        (
            {"keep_params": 0.5, "affine": True},
            "affine=True is of a fit to inputs; give calibration",
        ),
        ({"keep_params": 0.5, "skip": 3}, r"skip=3 must be a glob, or several of them"),
        ({"keep_params": 0.5, "skip": ["0", None]}, r"skip=\['0', None\] must be a glob"),
        ({"keep_params": 0.5, "holdout": 1}, "holdout=1 must be"),
        ({"keep_params": 0.5, "objective": "speed"}, "objective='speed'"),
        ({"keep_params": 0.5, "objective": "latency"}, "needs example="),
        ({"keep_params": 0.5, "random_state": "seed"}, "random_state='seed'"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        compress(cnn(), **options)


def test_bad_models_are_named() -> None:
    with pytest.raises(ArgumentError, match="model is a dict"):
        compress({}, keep_params=0.5)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="no parameters"):
        compress(nn.ReLU(), keep_params=0.5)
    for value, kind in ((float("nan"), "NaN"), (float("inf"), "Inf")):
        model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
        with torch.no_grad():
            model[1].weight[3, 4] = value
        with pytest.raises(ArgumentError, match=rf"weight of 1 contains {kind}.*skip=\['1'\]"):
            compress(model, keep_params=0.5)
        compress(model, keep_params=0.5, skip=["1"])
    uncopied = nn.Linear(16, 16)
    uncopied.extra = uncopied.weight * 2  # type: ignore[assignment]
    with pytest.raises(ArgumentError, match="cannot be copied"):
        compress(uncopied, keep_params=0.5)


def test_the_least_share_named_in_the_error_works() -> None:
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 2))
    with pytest.raises(ArgumentError) as caught:
        compress(model, keep_params=0.01)
    least = float(str(caught.value).split("keep_params=")[2].split()[0])
    _, report = compress(model, keep_params=least)
    assert report.eligible.share <= least


def test_all_weights_zero_and_rank_one_weights_are_finite() -> None:
    model = cnn()
    with torch.no_grad():
        model[0].weight.zero_()
        model[3].weight.fill_(1.0)
    for method in METHODS:
        with warnings.catch_warnings():
            for of_cp in (DegenerateWarning, ConvergenceWarning):
                warnings.simplefilter("ignore", of_cp)
            small, _ = compress(model, keep_params=0.5, method=method, calibration=[images(64)])
        assert all(torch.isfinite(p).all() for p in small.parameters())


def test_progress_is_on_stderr_of_a_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.delenv("TTY_COMPATIBLE", raising=False)
    compress(model, keep_params=0.5)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any stream for a terminal
    compress(model, keep_params=0.5)
    out, err = capsys.readouterr()
    assert out == ""
    assert "compress" in err
    compress(model, keep_params=0.5, progress=False)
    assert capsys.readouterr() == ("", "")


def test_layers_whose_sweeps_end_early_are_told_together(monkeypatch: pytest.MonkeyPatch) -> None:
    def early(*args: Any, **options: Any) -> Factors:
        warn("much still to gain", ConvergenceWarning)
        return cp(*args, **options)

    monkeypatch.setattr(_cp, "cp", early)
    data = [images(64, seed=k) for k in range(3)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        compress(cnn(), keep_params=0.5, method="cp", calibration=data, progress=False, **UNIFORM)
    told = [str(one.message) for one in said if one.category is ConvergenceWarning]
    assert len(told) == 1
    assert "the sweeps of 0, 3, 6 have over 2% of the error still to gain" in told[0]
