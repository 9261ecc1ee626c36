"""Layers that map tensors to tensors: what they compute, their gradients, and their files."""

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
from tensorlrf.errors import ArgumentError, RankError, ShapeError, UnsupportedError
from tensorlrf.nn import TensorContraction, TensorRegression
from tests.draws import generator, seeded

METHODS = ("tucker", "cp", "tt")
SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)


def letters(n: int, start: int = 0) -> str:
    return "abcdefghijklmnop"[start : start + n]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(METHODS), SIZES, SIZES, st.integers(1, 4), st.booleans(), st.integers(0, 2))
def test_regression_is_the_einsum_with_the_whole_weight(
    method: str, n: tuple[int, ...], m: tuple[int, ...], rank: int, bias: bool, batch_dims: int
) -> None:
    try:
        layer = TensorRegression.new(
            n, m, rank=rank, method=method, bias=bias, random_state=0, dtype=torch.float64
        )
    except RankError:  # more terms than entries, or than the sides of a matrix
        return
    x = seeded(*(2, 3)[:batch_dims], *n).requires_grad_()
    i, j = letters(len(n)), letters(len(m), len(n))
    wanted = torch.einsum(f"...{i},{i}{j}->...{j}", x, layer.factors.to_dense())
    wanted = wanted if layer.bias is None else wanted + layer.bias
    y = layer(x)
    torch.testing.assert_close(y, wanted)
    inputs = [x, *layer.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(y.square().sum(), inputs),
        torch.autograd.grad(wanted.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data(), SIZES)
def test_contraction_multiplies_every_mode_by_its_matrix(
    data: st.DataObject, n: tuple[int, ...]
) -> None:
    r = data.draw(st.tuples(*[st.none() | st.integers(1, 5) for _ in n]))
    if not any(r):
        return
    layer = TensorContraction.new(n, r, random_state=0, dtype=torch.float64)
    x = seeded(3, *n).requires_grad_()
    wanted: Tensor = x
    for k, size in enumerate(r):
        if size is not None:
            factor = layer.get_parameter(f"factors_{k}")
            assert factor.shape == (size, n[k])
            wanted = torch.tensordot(wanted, factor, dims=([k + 1], [1])).movedim(-1, k + 1)
    y = layer(x)
    assert tuple(y.shape) == (3, *layer.out_shape)
    torch.testing.assert_close(y, wanted)
    inputs = [x, *layer.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(y.square().sum(), inputs),
        torch.autograd.grad(wanted.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(layer(x[0]), y[0])


@pytest.mark.parametrize("method", METHODS)
def test_outputs_have_the_variance_of_a_dense_layers(method: str) -> None:
    draws = generator()
    x = torch.randn(32, 6, 5, 4, generator=draws)
    found = [
        float(
            TensorRegression.new((6, 5, 4), (7, 3), rank=3, method=method, bias=False,
                                 random_state=draws)(x).detach().square().mean()
        )
        for _ in range(60)
    ]  # fmt: skip
    assert 0.6 < 3 * sum(found) / len(found) < 1.6
    found = [
        float(
            TensorContraction.new((6, 5, 4), (3, None, 2), random_state=draws)(x)
            .detach()
            .square()
            .mean()
        )
        for _ in range(60)
    ]
    assert 0.6 < sum(found) / len(found) < 1.6


def test_a_share_is_an_upper_bound() -> None:
    for method in METHODS:
        for share in (0.02, 0.1, 0.5):
            f = TensorRegression.new((16, 7, 7), (10,), rank=share, method=method).factors
            assert f.n_params <= share * math.prod(f.shape)
    assert TensorRegression.new((8, 3), (9,), rank=5).factors.rank == (5, 3, 5)


def test_factors_of_a_decomposition_can_be_given() -> None:
    """The weight of a linear layer behind a flatten, with its modes told."""
    linear = nn.Linear(4 * 3 * 3, 5).double()
    whole = linear.weight.detach().T.reshape(4, 3, 3, 5)
    x = seeded(6, 4, 3, 3)
    ring = tensorlrf.tr(whole, 9, random_state=0, n_iter_max=2)
    for f in (
        tensorlrf.tucker(whole, (4, 3, 3, 5)),
        tensorlrf.tt(whole, 36),
        tensorlrf.svd(whole, 4),
    ):
        layer = TensorRegression(f, 3, linear.bias)
        torch.testing.assert_close(layer(x), linear(x.flatten(1)))
    torch.testing.assert_close(
        TensorRegression(ring, 3)(x), torch.einsum("bijk,ijko->bo", x, ring.to_dense())
    )
    partial = tensorlrf.tucker(whole, (4, 5), modes=(0, 3))
    torch.testing.assert_close(TensorRegression(partial, 3, linear.bias)(x), linear(x.flatten(1)))
    before = f.left.clone()
    with torch.no_grad():
        layer.left.zero_()
    assert torch.equal(f.left, before)


class Net(nn.Module):
    """As the networks of the paper end: a contraction, then a regression."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.contract = TensorContraction.new((8, 6, 6), (4, 3, 3), random_state=seed)
        self.regress = TensorRegression.new((4, 3, 3), (2,), rank=2, random_state=seed)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.regress(torch.relu(self.contract(self.conv(x))))
        return y


def test_they_are_saved_compressed_and_compiled_inside_a_model(tmp_path: Path) -> None:
    model, x = Net(1).eval(), torch.randn(2, 3, 8, 8, generator=generator())
    tensorlrf.save(model, tmp_path / "m.safetensors")
    with torch.no_grad():
        y = model(x)
        assert torch.equal(tensorlrf.load(tmp_path / "m.safetensors", Net(2).eval())(x), y)
        small, _ = tensorlrf.compress(model, keep_params=0.9, progress=False)
        assert small(x).shape == y.shape
        torch.compiler.reset()
        graph = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(graph(x), y)
        torch.compiler.reset()
        half = model.double()
        torch.testing.assert_close(half(x.double()).float(), y, rtol=1e-4, atol=1e-4)


def test_a_regression_is_learnt() -> None:
    teacher = TensorRegression.new((4, 3), (2,), rank=2, random_state=5)
    layer = TensorRegression.new((4, 3), (2,), rank=2, random_state=0)
    x = torch.randn(128, 4, 3, generator=generator())
    y = teacher(x).detach()
    optimiser = torch.optim.Adam(layer.parameters(), 0.03)
    losses = []
    for _ in range(200):
        optimiser.zero_grad()
        loss = (layer(x) - y).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


def test_bad_arguments_are_refused() -> None:
    regress: Any = TensorRegression
    contract: Any = TensorContraction
    f = tensorlrf.TuckerFactors(torch.ones(2, 2, 2), tuple(torch.ones(n, 2) for n in (3, 4, 5)))
    for order in (0, 3, True, 1.0):
        with pytest.raises(ArgumentError, match="order="):
            regress(f, order)
    with pytest.raises(ShapeError, match="bias is"):
        regress(f, 2, torch.zeros(4))
    with pytest.raises(ArgumentError, match="pass a factors object"):
        regress(torch.ones(3, 4), 1)
    with pytest.raises(UnsupportedError, match="KroneckerSum"):
        regress(tensorlrf.KroneckerSum(torch.ones(1, 2, 2), torch.ones(1, 2, 2)), 1)
    with pytest.raises(ShapeError, match="last 2 dimensions must be"):
        regress(f, 2)(torch.ones(7, 4, 3))
    with pytest.raises(ArgumentError, match="method="):
        regress.new((3,), (2,), rank=1, method="kron")
    for shape in ((), (0,), 3, "33", (True,)):
        with pytest.raises(ArgumentError, match="in_shape="):
            regress.new(shape, (2,), rank=1)
        with pytest.raises(ArgumentError, match="in_shape="):
            contract.new(shape, (2,))
    with pytest.raises(ShapeError, match="one entry for each mode"):
        contract.new((3, 4), (2,))
    with pytest.raises(ArgumentError, match="one matrix at least"):
        contract.new((3, 4), (None, None))
    with pytest.raises(ShapeError, match=r"must be \(r, 4\)"):
        contract((3, 4), (None, torch.ones(2, 3)))
    with pytest.raises(ArgumentError, match="several dtypes"):
        contract((3, 4), (torch.ones(2, 3), torch.ones(2, 4).double()))
