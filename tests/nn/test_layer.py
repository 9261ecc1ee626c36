"""Factored layers are good citizens among torch modules."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import Factors
from tensorlrf.nn import FactoredEmbedding, FactoredHFConv1D, FactoredLayer, FactoredLinear
from tensorlrf.ops import PathTable
from tests.laws.layers import Case, LayerLaws
from tests.nn.samples import (
    FORMATS,
    MATRIX_FORMATS,
    dense_conv,
    dense_linear,
    factored,
    input_of,
    of_kind,
    random_factors,
)
from tests.nn.test_hf_conv1d import Conv1D

LAYERS = [(format, kind) for format in FORMATS for kind in ("linear", "conv")]
LAYERS += [
    (format, kind) for format in ("lowrank", "cp", "tucker") for kind in ("conv1d", "grouped")
]
LAYERS += [(format, "linear") for format in MATRIX_FORMATS]
LAYERS += [("kron", "grouped"), ("tt", "grouped"), ("tt", "conv1d"), ("kron", "conv3d")]
LAYERS += [("tucker_partial", "conv3d"), ("lowrank", "conv3d"), ("tucker_partial", "grouped1d")]


def make(format: str, kind: str, seed: int = 0) -> FactoredLayer:
    return factored(*of_kind(format, kind, seed))


def example(kind: str, dtype: torch.dtype = torch.float64) -> Tensor:
    return input_of(kind, dtype)


def case_of(format: str, kind: str) -> Case:
    """A linear layer or a convolution."""
    return Case(f"{kind}-{format}", lambda s: of_kind(format, kind, s), factored, input_of(kind))


def transposed(format: str) -> Case:
    """The Conv1D of transformers."""

    def parts(seed: int) -> tuple[Factors, Any]:
        f = random_factors(format, (5, 4), seed=seed)
        like: Any = Conv1D(5, 4).double()
        with torch.no_grad():
            like.weight.copy_(f.to_dense().T)
            like.bias.copy_(f.to_dense()[:, 0])
        return f, like

    return Case(f"hf_conv1d-{format}", parts, FactoredHFConv1D.from_factors, input_of("linear"))


def table(format: str) -> Case:
    """An embedding of twelve rows."""

    def parts(seed: int) -> tuple[Factors, Any]:
        f = random_factors(format, (12, 4), seed=seed)
        return f, nn.Embedding(12, 4, _weight=f.to_dense())

    indices = torch.tensor([[0, 11, 3], [7, 7, 1]])
    return Case(f"embedding-{format}", parts, FactoredEmbedding.from_factors, indices)


CASES = [case_of(format, kind) for format, kind in LAYERS]
CASES += [transposed(format) for format in (*FORMATS, *MATRIX_FORMATS)]
CASES += [table(format) for format in ("lowrank", "cp", "tucker", "tucker_partial", "tt")]


@pytest.mark.parametrize("case", CASES, ids=str)
class TestEveryLayer(LayerLaws):
    pass


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_flags_of_the_layer_are_taken_over(kind: str) -> None:
    shape = (5, 4) if kind == "linear" else (5, 4, 3, 3)
    f = random_factors("cp", shape)
    for weight_flag, bias_flag, training in ((True, False, False), (False, True, True)):
        like = (dense_linear(f) if kind == "linear" else dense_conv(f)).train(training)
        like.weight.requires_grad_(weight_flag)
        assert like.bias is not None
        like.bias.requires_grad_(bias_flag)
        layer = factored(f, like)
        assert layer.training == training
        for name, p in layer.named_parameters():
            assert p.requires_grad == (bias_flag if name == "bias" else weight_flag)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_dtype_of_the_layer_is_taken_over_and_no_bias_is_added(kind: str) -> None:
    shape = (5, 4) if kind == "linear" else (5, 4, 3, 3)
    f = random_factors("cp", shape)
    like = (dense_linear if kind == "linear" else dense_conv)(f, bias=False).to(torch.bfloat16)
    layer = factored(f, like)
    assert layer.bias is None
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    assert f.dtype == torch.float64


def test_a_step_of_an_optimiser_moves_the_weight() -> None:
    layer, x = make("cp", "conv"), example("conv")
    optimiser = torch.optim.SGD(layer.parameters(), lr=1e-3)
    losses = []
    for _ in range(20):
        optimiser.zero_grad()
        loss = layer(x).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)


def test_a_parametrized_factor_is_what_runs() -> None:
    class Doubled(nn.Module):
        def forward(self, t: Tensor) -> Tensor:
            return 2 * t

    layer, x = make("lowrank", "linear").eval(), example("linear")
    layer.bias = None
    for path in layer.paths:
        layer.path_table = PathTable.single(path)
        plain = layer(x)
        twin = copy.deepcopy(layer)
        register_parametrization(twin, "left", Doubled())
        torch.testing.assert_close(twin(x), 2 * plain, rtol=1e-14, atol=0)
        with torch.no_grad():
            torch.testing.assert_close(twin(x), 2 * plain, rtol=1e-14, atol=0)


def test_a_path_table_must_fit_the_layer() -> None:
    layer = make("lowrank", "conv")
    with pytest.raises(ArgumentError, match="'fold' is unknown; choose one of dense, chain"):
        layer.path_table = PathTable.single("fold")
    with pytest.raises(ArgumentError, match=r"path_table='chain' is a str; .*single\('chain'\)"):
        layer.path_table = "chain"  # type: ignore[assignment]


def test_a_bias_must_fit_the_factors() -> None:
    f = random_factors("lowrank", (5, 4))
    with pytest.raises(ShapeError, match=r"bias is \(4,\); it must be None or a tensor \(5,\)"):
        FactoredLinear(f, torch.zeros(4, dtype=torch.float64))
    with pytest.raises(ArgumentError, match=r"bias is torch\.float32"):
        FactoredLinear(f, torch.zeros(5))
