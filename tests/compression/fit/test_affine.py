"""The affine form: biases make good what they can, where that helps, and the report says so."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tensorlrf import CP, SVD, Tucker, compress
from tensorlrf.compression import Method
from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.calibration._layer_moments import LayerMoments
from tensorlrf.compression.calibration.moments._moments import moments_of
from tensorlrf.compression.fit._factor import factor
from tensorlrf.compression.fit._factored import Factored, Options
from tensorlrf.nn import FactoredLayer
from tests.compression.networks import relative, set_weights
from tests.draws import seeded32


def net(*, bias: bool) -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(6, 16, 3, bias=bias), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=2, bias=bias)
    )
    set_weights(model)
    return model


def data(n: int = 3, offset: float = 1.5) -> list[Tensor]:
    return [seeded32(10, 6, 9, 9, seed=k) + offset for k in range(n)]


def both(conv: nn.Module, method: Method, x: Tensor) -> list[Factored]:
    """The affine fit and the linear one, to the same inputs."""
    seen = LayerMoments(DenseLayer.of(conv), lags=False, holds_out=False)
    seen.add(x, None, held=False)
    return [
        factor("conv", DenseLayer.of(conv), method, copy.deepcopy(seen), Options(affine=a))
        for a in (True, False)
    ]


@given(
    st.integers(0, 999),
    st.sampled_from([SVD(rank=2), SVD(rank=2, metric="identity"), CP(rank=3, n_iter_max=2)]),
    st.sampled_from([1, 2]),
    st.floats(-3, 3),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_never_above_the_linear_form_on_the_inputs_fitted_to(
    seed: int, method: Method, groups: int, offset: float
) -> None:
    conv = nn.Conv2d(6, 8, 3, groups=groups)
    with torch.no_grad():
        conv.weight.copy_(seeded32(*conv.weight.shape, seed=seed))
    x = seeded32(6, 6, 7, 7, seed=seed + 1) + offset
    affine, linear = both(conv, method, x)
    assert affine.fit_error is not None
    assert linear.fit_error is not None
    if isinstance(method, SVD):  # an optimum; sweeps of CP end in one valley or another
        # Moments of float32 products; squared errors are differences of terms near one.
        assert affine.fit_error**2 <= linear.fit_error**2 + 1e-4
    # The bias it adds is (W - A) E[x], and with it the error is the true one.
    assert affine.shift is not None
    new, old = affine.factors.to_dense(), conv.weight.detach()
    with torch.no_grad():
        y = torch.func.functional_call(conv, {"weight": old, "bias": torch.zeros(8)}, x)
        shift = affine.shift.float()
        z = torch.func.functional_call(conv, {"weight": new, "bias": shift}, x)
    assert affine.fit_error == pytest.approx(relative(z, y), abs=1e-3)
    assert (y - z).mean((0, 2, 3)).abs().max() <= 1e-4 * float(y.abs().max())


@pytest.mark.parametrize("method", [SVD(rank=3), Tucker(rank=(5, 4)), CP(rank=5, n_iter_max=3)])
@pytest.mark.parametrize("target", ["prefix", "independent"])
def test_the_bias_is_the_exact_correction(method: Method, target: str) -> None:
    """b + (W - A) E[x], with E[x] the mean patch of the inputs that the layer gets."""
    model = net(bias=True)
    small, report = compress(
        model, method={"0": method, "*": None}, calibration=data(), affine=True, target=target,
        holdout=0,
    )  # fmt: skip
    conv, new = model[0], small[0]
    moments = moments_of(DenseLayer.of(conv))
    for x in data():
        moments.add(x)
    with torch.no_grad():
        lost = (conv.weight - new.weight).flatten(1).double()
        wanted = conv.bias + (lost @ moments.mean()).float()
    # Each side rounds the correction, and its sum with the bias, to float32.
    assert new.bias is not None
    unit = torch.finfo(torch.float32).eps * float(wanted.detach().abs().max())
    torch.testing.assert_close(new.bias.detach(), wanted, rtol=0, atol=4 * unit)
    assert report.layer("0").bias == "corrected"
    assert report.affine
    assert "bias corrected" in str(report)


@pytest.mark.parametrize("rerun", [False, True])
@pytest.mark.parametrize("target", ["prefix", "original", "independent"])
def test_a_layer_without_bias_gets_one(target: str, rerun: bool) -> None:
    model = net(bias=False)
    small, report = compress(
        model, keep_params=0.6, calibration=data(), affine=True, target=target, rerun=rerun
    )
    assert [row.bias for row in report.layers] == ["added", "added"]
    assert "biases added to layers that had none: 0, 2" in str(report)
    assert model[0].bias is None
    x = data(1)[0]
    for layer in (small[0], small[2]):
        assert isinstance(layer, FactoredLayer)
        assert layer.bias is not None
        assert layer.bias.requires_grad
        assert layer.bias.any()
        assert layer.recipe["affine"] is True
    assert report.model.params_after == sum(p.numel() for p in small.parameters())
    linear, _ = compress(model, keep_params=0.6, calibration=data(), target=target)
    assert linear[0].bias is None
    with torch.no_grad():
        assert relative(small(x), model(x)) < relative(linear(x), model(x))


def test_not_kept_where_the_held_out_error_rises() -> None:
    """The held-out inputs have the opposite mean."""
    model = net(bias=False)
    calibration = [*data(3), data(1, offset=-1.5)[0]]
    small, report = compress(
        model, keep_params=0.6, calibration=calibration, holdout=0.25, affine=True,
        target="independent",
    )  # fmt: skip
    row = report.layer("0")
    assert row.held_out
    assert row.bias == ""
    assert small[0].bias is None
    # It is then the linear fit, bit for bit.
    linear, _ = compress(
        model, keep_params=0.6, calibration=calibration, holdout=0.25, target="independent"
    )
    assert torch.equal(small[0].weight, linear[0].weight)


def test_layers_left_by_their_error_are_given_back_as_they_were() -> None:
    model = net(bias=False)
    with torch.no_grad():
        model[0].weight.copy_(torch.linalg.qr(seeded32(54, 16))[0].T.reshape(16, 6, 3, 3))
    small, report = compress(
        model, method={"0": SVD(error=0.01), "2": SVD(rank=3)}, calibration=data(), affine=True
    )
    assert "no smaller form" in report.layer("0").reason
    assert type(small[0]) is nn.Conv2d
    assert small[0].bias is None
    assert "0.bias" not in small.state_dict()
    assert report.layer("2").bias == "added"


@pytest.mark.filterwarnings("ignore::tensorlrf.errors.CalibrationWarning")
@pytest.mark.parametrize("target", ["original", "independent"])
@pytest.mark.parametrize("method", ["svd", "kron", "blr"])
def test_inputs_that_do_not_vary(method: str, target: str) -> None:
    for seed in range(4):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12))
        row = torch.randn(1, 12).expand(37, 12)
        small, _ = compress(
            model, keep_params=0.8, method=method, calibration=[row, row], affine=True,
            target=target, skip=[],
        )  # fmt: skip
        assert torch.isfinite(small(row)).all()
