"""Weights of a tensor subclass: left, unless it was said how their values are read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tensorlrf
from tensorlrf.errors import ArgumentError, UnsupportedError
from tensorlrf.nn import factorize, register_tensor, tensors
from tests.compression.wrapped import Wrapped


class Runs(Wrapped):
    """One that a linear layer runs on, as on a quantised weight."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if function is F.linear:
            x, weight, *bias = args
            return function(x, weight.inner, *bias, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is known in it alone."""
    monkeypatch.setattr(tensors, "_REGISTERED", {})


def model() -> tuple[nn.Sequential, nn.Sequential]:
    """One with two such weights, and the same with ordinary ones."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32, bias=False))
    wrapped = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32, bias=False))
    wrapped.load_state_dict(plain.state_dict())
    for k in (0, 2):
        inner = wrapped[k].weight.detach()
        wrapped[k].weight = nn.Parameter(Runs(inner), requires_grad=False)
    return wrapped, plain.requires_grad_(False)


def test_without_it_they_stay() -> None:
    wrapped, _ = model()
    made = tensorlrf.plan(nn.Sequential(wrapped, nn.Linear(32, 32)), keep_params=0.5, skip=[])
    reasons = {layer.name: layer.reason for layer in made.layers}
    assert reasons["0.0"] == reasons["0.2"] == "its weight is a Runs, no ordinary tensor"
    with pytest.raises(UnsupportedError, match="register_tensor"):
        factorize(wrapped[0], "svd", 4)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("target", ["original", "prefix", "independent"])
def test_with_it_they_are_what_they_stand_for(target: str, affine: bool) -> None:
    register_tensor(Runs, lambda weight: weight.inner.clone())
    wrapped, plain = model()
    x = torch.randn(300, 32)
    data = [x[k : k + 100] for k in (0, 100, 200)]
    options: dict[str, Any] = {"keep_params": 0.5, "skip": [], "target": target, "affine": affine}
    small, report = tensorlrf.compress(wrapped, calibration=data, **options)
    want, _ = tensorlrf.compress(plain, calibration=data, **options)
    assert [row.factored for row in report.layers] == [True, True]
    torch.testing.assert_close(small(x), want(x))
    assert not any(isinstance(p, Wrapped) for p in small.parameters())
    assert type(wrapped[0].weight) is Runs
    torch.testing.assert_close(wrapped(x), plain(x))
    torch.testing.assert_close(factorize(wrapped[0], "svd", 4)(x), factorize(plain[0], "svd", 4)(x))


def test_what_is_registered_is_checked() -> None:
    for wrong in (Tensor, nn.Parameter, nn.Linear, "Wrapped"):
        with pytest.raises(ArgumentError, match=r"no subclass of torch\.Tensor"):
            register_tensor(wrong, lambda weight: weight)  # type: ignore[arg-type]
    register_tensor(Runs, lambda weight: weight.inner.double())
    with pytest.raises(ArgumentError, match="known already"):
        register_tensor(Runs, lambda weight: weight)
    with pytest.raises(ArgumentError, match=r"gave Tensor of \(32, 32\), torch.float64"):
        factorize(model()[0][0], "svd", 4)
