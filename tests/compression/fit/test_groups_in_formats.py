"""Convolutions with groups in every format that a convolution has: all groups of one structure."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tensorlrf
from tensorlrf.decomposition.methods import names
from tensorlrf.errors import ArgumentError
from tensorlrf.factors import Grouped
from tensorlrf.nn import factorize
from tensorlrf.nn.obstacles import why_not
from tests.compression.networks import UNIFORM
from tests.draws import seeded32

APART = ("interpolative", "cur")
"""Each group would have columns and rows of its own."""
METHODS = [name for name in names("conv") if name not in APART]


def convolution(seed: int, groups: int, *, transposed: bool = False) -> Any:
    """Each group an exact Kronecker product, of sizes that differ from group to group."""
    make: Any = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = make(12 * groups, 12 * groups, 3, padding=1, groups=groups)
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for k, part in enumerate(layer.weight.chunk(groups)):
            m = (2, 3, 6)[k % 3]
            a = torch.randn(m, m, generator=draws)
            b = torch.randn(12 // m, 12 // m, 3, 3, generator=draws)
            kron = torch.einsum("ij,klxy->ikjlxy", a, b).reshape(part.shape)
            part.copy_(kron + 0.1 * torch.randn(part.shape, generator=draws))
    return layer


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 99),
    groups=st.integers(2, 3),
    transposed=st.booleans(),
    budget=st.sampled_from([{"rank": 0.4}, {"rank": 2}, {"error": 0.3}]),
)
def test_factorize(
    method: str, seed: int, groups: int, transposed: bool, budget: dict[str, Any]
) -> None:
    layer = convolution(seed, groups, transposed=transposed)
    if method == "cp" and "error" in budget:
        return  # a search, which takes its time
    small = factorize(layer, method, **budget)
    factors = small.factors
    assert isinstance(factors, Grouped)
    weight, made = layer.weight.detach(), small.weight.detach()
    if "error" in budget:
        parts = zip(weight.chunk(groups), made.chunk(groups), strict=True)
        assert all((a - b).norm() <= 0.3001 * a.norm() for a, b in parts)
    elif budget["rank"] == 0.4:
        assert factors.n_params <= 0.4 * weight.numel()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_compress(method: str, calibrated: bool, transposed: bool) -> None:
    model = nn.Sequential(convolution(0, 2, transposed=transposed)).eval()
    batches = [seeded32(4, 24, 8, 8, seed=k) for k in range(6)] if calibrated else None
    small, report = tensorlrf.compress(
        model, keep_params=0.6, method=method, calibration=batches, skip=[], **UNIFORM
    )
    (row,) = report.layers
    assert row.factored
    assert row.format is not None
    assert row.format.startswith("grouped")
    assert row.share <= 0.6
    assert row.data_aware == calibrated
    x = seeded32(2, 24, 8, 8, seed=77)
    assert (small(x) - model(x)).norm() < 0.9 * model(x).norm()


@pytest.mark.parametrize("method", APART)
def test_what_picks_columns_and_rows_leaves_groups_and_says_why(method: str) -> None:
    model = nn.Sequential(convolution(0, 2), nn.Conv2d(24, 24, 3))
    _, report = tensorlrf.compress(model, keep_params=0.7, method=method, skip=[], **UNIFORM)
    grouped, whole = report.layers
    assert "its groups would each pick columns and rows of their own" in grouped.reason
    assert not grouped.factored
    assert whole.factored
    with pytest.raises(ArgumentError, match="which the groups do not have in common; use svd"):
        factorize(model[0], method, 2)


@pytest.mark.parametrize(("method", "error"), [("kron", 0.35), ("tt", 0.8)])
def test_an_error_for_each_layer(method: str, error: float) -> None:
    model = nn.Sequential(convolution(3, 3)).eval()
    small, report = tensorlrf.compress(model, error=error, method=method, skip=[])
    (row,) = report.layers
    assert row.weight_error is not None
    assert row.weight_error <= error * 1.001
    weight = small[0].weight.detach()  # type: ignore[index]
    assert (weight - model[0].weight).norm() <= error * 1.001 * model[0].weight.norm()  # type: ignore


class Separable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.pointwise = nn.Conv2d(32, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))  # type: ignore[no-any-return]


def test_a_depthwise_convolution_stays_and_why_is_said() -> None:
    """Of a separable one the pointwise half is what is factored."""
    model = Separable()
    said = "every channel has one filter, of rank one already, so there is nothing to factor"
    plan = tensorlrf.plan(model, keep_params=0.5, skip=[])
    assert said in plan.layer("depthwise").reason
    assert plan.layer("pointwise").method is not None
    _, report = tensorlrf.compress(model, keep_params=0.5, skip=[])
    assert said in report.layer("depthwise").reason
    assert said in why_not(nn.ConvTranspose1d(4, 8, 3, groups=4))
