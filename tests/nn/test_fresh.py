"""Layers that are trained from the start: the variance of the dense layer, and no dense weight."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tensorlrf
from tensorlrf.errors import ArgumentError, RankError, UnsupportedError
from tensorlrf.factors import Factors
from tensorlrf.nn import (
    FactoredConv1d,
    FactoredConv2d,
    FactoredConv3d,
    FactoredConvTranspose2d,
    FactoredEmbedding,
    FactoredLayer,
    FactoredLinear,
)
from tests.draws import generator

LINEAR = ("svd", "cp", "tucker", "tt", "tr", "kron", "monarch", "blast")
CONV = ("svd", "cp", "tucker", "tt", "kron")
EMBEDDING = ("svd", "cp", "tucker", "tt")


def mean_square(weights: list[Tensor]) -> float:
    return float(torch.stack([w.detach().double().square().mean() for w in weights]).mean())


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    method=st.sampled_from(LINEAR),
    sides=st.sampled_from([(48, 36), (36, 64), (97, 40)]),
    rank=st.sampled_from([1, 3, 0.3]),
    std=st.sampled_from([None, 0.5]),
    seed=st.integers(0, 999),
)
def test_outputs_have_the_variance_of_those_of_the_dense_layer(
    method: str, sides: tuple[int, int], rank: int | float, std: float | None, seed: int
) -> None:
    if method in ("kron", "tr") and 97 in sides:
        sides = (96, 40)
    n, m = sides
    draws = generator(seed)

    def once() -> float:
        layer = FactoredLinear.new(
            n, m, rank=rank, method=method, bias=False, std=std, random_state=draws
        )
        x = torch.randn(64, n, generator=draws)
        return float(layer(x).detach().square().mean())

    # One draw of a product of few small cores may be off by a lot; the mean of many is not.
    found = sum(once() for _ in range(60)) / 60
    wanted = n * (1 / (3 * n) if std is None else std**2)
    assert 0.6 < found / wanted < 1.6


@pytest.mark.parametrize("method", CONV)
@pytest.mark.parametrize("groups", [1, 2])
def test_kernels_have_the_variance_of_torchs(method: str, groups: int) -> None:
    draws = generator()
    for kind, axes in ((FactoredConv1d, 1), (FactoredConv2d, 2), (FactoredConv3d, 3)):
        kernel = (3, 2, 2)[:axes]
        layers = [
            kind.new(16, 12, kernel, rank=4, method=method, groups=groups, random_state=draws)
            for _ in range(30)
        ]
        fan_in = 16 // groups * math.prod(kernel)
        found = mean_square([layer.factors.to_dense() for layer in layers])
        assert 0.6 < found * 3 * fan_in < 1.6
        like = getattr(nn, f"Conv{axes}d")(16, 12, kernel, groups=groups)
        x = torch.randn(2, 16, *(5,) * axes, generator=draws)
        assert layers[0](x).shape == like(x).shape
        assert layers[0].factors.shape == tuple(like.weight.shape)


@pytest.mark.parametrize("method", ["svd", "tt", "kron"])
@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_kernels_have_the_variance_of_torchs(method: str, groups: int) -> None:
    draws = generator()
    like = nn.ConvTranspose2d(16, 12, 3, stride=2, groups=groups)
    layers = [
        FactoredConvTranspose2d.new(
            16, 12, 3, rank=4, method=method, stride=2, groups=groups, random_state=draws
        )
        for _ in range(30)
    ]
    found = mean_square([layer.weight.clone() for layer in layers])
    assert 0.6 < found / float(like.weight.detach().square().mean()) < 1.6
    x = torch.randn(2, 16, 5, 5, generator=draws)
    assert layers[0](x).shape == like(x).shape
    assert layers[0].weight.shape == like.weight.shape


@pytest.mark.parametrize("method", EMBEDDING)
def test_tables_have_entries_of_variance_one_and_no_padding(method: str) -> None:
    draws = generator()
    tables = [
        FactoredEmbedding.new(90, 24, rank=3, method=method, padding_idx=4, random_state=draws)
        for _ in range(30)
    ]
    assert 0.6 < mean_square([t.factors.to_dense() for t in tables]) < 1.6
    if method != "tt":
        assert torch.count_nonzero(tables[0](torch.tensor([4]))) == 0


@pytest.mark.parametrize("method", [*LINEAR, "blr"])
def test_spectral_factors_are_those_of_a_dense_weight_at_its_norm(method: str) -> None:
    """Its orthonormal bases, of a matrix; and exactly the variance that was asked for."""
    options: dict[str, Any] = {"blocks": 2} if method in ("blast", "monarch") else {}
    layer = FactoredLinear.new(
        24, 32, rank=0.4, method=method, init="spectral", std=0.2, random_state=1, **options
    )
    # Of 768 uniform numbers, by their fourth moment; formats of dense blocks are no power of one.
    assert abs(mean_square([layer.factors.to_dense()]) / 0.04 - 1) < (
        0.5 if method == "blr" else 0.2
    )
    if method == "svd":
        gram = layer.factors.left.T @ layer.factors.left
        torch.testing.assert_close(gram, torch.diag(gram.diagonal()), rtol=0, atol=1e-5)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.sampled_from(LINEAR), st.sampled_from([0.05, 0.3, 1.0]), st.integers(0, 9))
def test_a_share_is_an_upper_bound_and_what_the_decomposition_would_take(
    method: str, share: float, seed: int
) -> None:
    layer = FactoredLinear.new(30, 36, rank=share, method=method, random_state=seed)
    least = FactoredLinear.new(30, 36, rank=1, method=method, random_state=seed).factors.n_params
    assert layer.factors.n_params <= max(share * 30 * 36, least)
    if method != "kron":  # whose pair a fit chooses by the weight
        given = {"random_state": 0} if method in ("cp", "tr", "blast") else {}
        fitted = tensorlrf.nn.factorize(nn.Linear(30, 36), method, share, **given)
        if method != "tucker":  # of a matrix both sides are cut by one fraction
            assert fitted.factors.rank == layer.factors.rank
        assert type(fitted.factors) is type(layer.factors)


def test_a_seed_repeats_and_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a, b, c = (FactoredLinear.new(8, 6, rank=2, random_state=k) for k in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.left, b.left)
    assert torch.equal(a.bias, b.bias)
    assert not torch.equal(a.left, c.left)
    d, e = (FactoredLinear.new(8, 6, rank=2) for _ in range(2))
    assert not torch.equal(d.left, e.left)


def test_all_tensors_have_one_norm_and_cp_weights_are_ones() -> None:
    for method in ("svd", "tt", "tr", "kron"):
        layer = FactoredLinear.new(900, 400, rank=8, method=method, random_state=0)
        norms = torch.stack([p.detach().norm() for n, p in layer.named_parameters() if n != "bias"])
        assert float(norms.max() / norms.min()) < 1.4
    assert FactoredLinear.new(8, 6, rank=2, method="cp").weights.tolist() == [1.0, 1.0]


def test_no_dense_weight_is_made() -> None:
    """One would take 4 TB."""
    layer = FactoredLinear.new(1 << 20, 1 << 20, rank=2, bias=False, random_state=0)
    assert layer.factors.n_params == 4 << 20
    train = FactoredLinear.new(1 << 20, 1 << 20, rank=2, method="tt", bias=False, random_state=0)
    assert torch.isfinite(train(torch.ones(1, 1 << 20))).all()
    blank = FactoredLinear.new(1 << 20, 1 << 20, rank=2, device="meta")
    assert blank.left.device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_and_options_are_kept(dtype: torch.dtype) -> None:
    conv = FactoredConv2d.new(
        8, 6, (3, 1), rank=2, stride=2, padding="valid", dilation=2, bias=False, dtype=dtype
    )
    assert {p.dtype for p in conv.parameters()} == {dtype}
    assert (conv.stride, conv.padding, conv.dilation, conv.bias) == ((2, 2), "valid", (2, 2), None)
    train = FactoredLinear.new(12, 12, rank=2, method="tt", row_sizes=(3, 4), column_sizes=(2, 6))
    assert train.factors.row_sizes == (3, 4)
    pair = ((3, 2), (4, 6))
    assert FactoredLinear.new(12, 12, rank=1, method="kron", shapes=pair).a.shape == (1, 3, 2)


def test_it_trains_and_is_saved_in_a_model(tmp_path: Path) -> None:
    """A teacher of low rank is learnt, whatever the format."""
    x = torch.randn(256, 12, generator=generator())
    for method in ("svd", "tt", "kron", "cp"):
        teacher = FactoredLinear.new(12, 8, rank=2, method=method, random_state=7)
        model = nn.Sequential(FactoredLinear.new(12, 8, rank=2, method=method, random_state=0))
        y = teacher(x).detach()
        optimiser = torch.optim.Adam(model.parameters(), 0.02)
        losses = []
        for _ in range(150):
            optimiser.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.3 * losses[0]
        tensorlrf.save(model, tmp_path / f"{method}.safetensors")
        again = tensorlrf.load(tmp_path / f"{method}.safetensors", nn.Sequential(nn.Linear(12, 8)))
        assert torch.equal(again(x), model(x))


def test_bad_arguments_are_refused() -> None:
    new: Any = FactoredLinear.new
    for wrong in ({"in_features": 0}, {"out_features": True}, {"std": -1.0}, {"std": math.nan},
                  {"init": "zeros"}, {"method": "nothing"}, {"shapes": 3}, {"dtype": torch.int8},
                  {"random_state": "x"}, {"method": "tt", "row_sizes": (2, 2)}):  # fmt: skip
        given = {"in_features": 8, "out_features": 6, "rank": 2, **wrong}
        with pytest.raises((ArgumentError, UnsupportedError)):
            new(given.pop("in_features"), given.pop("out_features"), **given)
    for rank in (0, 7, 0.0, 1.5, "much", (1, 1)):
        with pytest.raises(RankError, match="rank"):
            new(8, 6, rank=rank)
    with pytest.raises(UnsupportedError, match="finds the sizes"):
        new(8, 6, rank=0.5, method="blr")
    with pytest.raises(UnsupportedError, match="no divisors"):
        new(7, 5, rank=1, method="kron")
    with pytest.raises(ArgumentError, match="groups=3 must divide"):
        FactoredConv1d.new(8, 6, 3, rank=2, groups=3)
    with pytest.raises((ArgumentError, UnsupportedError)):
        FactoredEmbedding.new(8, 6, rank=2, method="kron")


def test_every_layer_with_new_is_factored() -> None:
    made: list[FactoredLayer] = [
        FactoredLinear.new(8, 6, rank=2),
        FactoredEmbedding.new(8, 6, rank=2),
    ]
    for layer in made:
        factors: Factors = layer.factors
        assert factors.rank == 2
        assert layer.training
        assert all(p.requires_grad for p in layer.parameters())
