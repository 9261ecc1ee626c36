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
from tensorlrf.nn import (
    FactoredConv2d,
    FactoredEmbedding,
    FactoredHFConv1D,
    FactoredLinear,
    factorize,
)
from tensorlrf.ops import PathTable
from tests.draws import seeded
from tests.laws.compiled import CompiledLaws
from tests.laws.layers import Case, LayerLaws
from tests.nn.samples import (
    TRANSPOSED,
    dense_conv,
    dense_linear,
    factored,
    input_of,
    of_kind,
    transposed_conv,
)
from tests.nn.test_hf_conv1d import Conv1D
from tests.ops.samples import FORMATS, MATRIX_FORMATS, random_factors, random_grouped

LAYERS = [(format, kind) for format in FORMATS for kind in ("linear", "conv")]
LAYERS += [
    (format, kind) for format in ("lowrank", "cp", "tucker") for kind in ("conv1d", "grouped")
]
LAYERS += [(format, "linear") for format in MATRIX_FORMATS]
LAYERS += [("kron", "grouped"), ("tt", "grouped"), ("tt", "conv1d"), ("kron", "conv3d")]
LAYERS += [("tucker_partial", "conv3d"), ("lowrank", "conv3d"), ("tucker_partial", "grouped1d")]


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


def deconvolution(format: str, axes: int = 2, groups: int = 1) -> Case:
    """A transposed convolution."""

    def parts(seed: int) -> tuple[Factors, Any]:
        f = random_grouped(format, (4 * groups, 3, *(3, 2, 2)[:axes]), groups, seed)
        return f, transposed_conv(f, stride=2, padding=1)

    x = seeded(2, 3 * groups, *(4, 3, 3)[:axes], seed=3)
    kind = f"transposed{axes}d" + "_grouped" * (groups > 1)
    return Case(f"{kind}-{format}", parts, TRANSPOSED[axes][1].from_factors, x)


def table(format: str) -> Case:
    """An embedding of twelve rows."""

    def parts(seed: int) -> tuple[Factors, Any]:
        f = random_factors(format, (12, 4), seed=seed)
        return f, nn.Embedding(12, 4, _weight=f.to_dense())

    indices = torch.tensor([[0, 11, 3], [7, 7, 1]])
    return Case(f"embedding-{format}", parts, FactoredEmbedding.from_factors, indices)


CASES = [case_of(format, kind) for format, kind in LAYERS]
CASES += [transposed(format) for format in (*FORMATS, *MATRIX_FORMATS)]
CASES += [deconvolution(format) for format in FORMATS]
CASES += [deconvolution("lowrank", 1), deconvolution("cp", 3), deconvolution("tucker", 2, 2)]
CASES += [table(format) for format in ("lowrank", "cp", "tucker", "tucker_partial", "tt")]


@pytest.mark.parametrize("case", CASES, ids=str)
class TestEveryLayer(LayerLaws):
    pass


KINDS = {str(case).split("-")[0]: case for case in reversed(CASES)}  # the first of each
QUICK = [KINDS[k] for k in ("linear", "conv", "grouped", "hf_conv1d", "transposed2d", "embedding")]
TRACED = [pytest.param(case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES]


@pytest.mark.parametrize("case", TRACED, ids=str)
class TestEveryLayerCompiled(CompiledLaws):
    pass


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3, 3)], ids=["linear", "conv"])
def test_flags_and_dtype_of_the_layer_are_taken_over_and_no_bias_is_added(
    shape: tuple[int, ...],
) -> None:
    f = random_factors("cp", shape)
    make: Any = dense_linear if len(shape) == 2 else dense_conv
    for weight_flag, bias_flag, training in ((True, False, False), (False, True, True)):
        like = make(f).train(training)
        like.weight.requires_grad_(weight_flag)
        like.bias.requires_grad_(bias_flag)
        layer = factored(f, like)
        assert layer.training == training
        for name, p in layer.named_parameters():
            assert p.requires_grad == (bias_flag if name == "bias" else weight_flag)
    layer = factored(f, make(f, bias=False).to(torch.bfloat16))
    assert layer.bias is None
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    assert f.dtype == torch.float64


def test_a_parametrized_factor_is_what_runs() -> None:
    class Doubled(nn.Module):
        def forward(self, t: Tensor) -> Tensor:
            return 2 * t

    layer, x = factored(*of_kind("lowrank", "linear")).eval(), input_of("linear")
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
    layer = factored(*of_kind("lowrank", "conv"))
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


def test_the_path_table_decides_by_rows() -> None:
    layer = FactoredLinear(random_factors("lowrank", (5, 4)))
    layer.path_table = PathTable(((6, "dense"), (None, "chain")))
    assert layer._path(torch.empty(2, 3, 4)) == "dense"
    assert layer._path(torch.empty(7, 4)) == "chain"
    assert layer._path(torch.empty(4)) == "dense"


def test_sizes_and_repr_are_those_of_the_torch_layer() -> None:
    layer = FactoredLinear(random_factors("lowrank", (6, 8)), torch.zeros(6, dtype=torch.float64))
    assert (layer.in_features, layer.out_features) == (8, 6)
    layer.path_table = PathTable.single("chain")
    assert repr(layer) == (
        "FactoredLinear(in_features=8, out_features=6, bias=True, format=lowrank, rank=2, "
        "share=58.3%, path=chain)"
    )


def test_factors_of_another_shape_and_what_is_neither_factors_nor_a_layer() -> None:
    f, linear = random_factors("cp", (4, 5)), nn.Linear(4, 5)
    with pytest.raises(ShapeError, match=r"shape \(4, 5\), but like.weight has shape \(5, 4\)"):
        FactoredLinear.from_factors(f, linear)
    with pytest.raises(ShapeError, match=r"\(6, 4, 3, 3\)"):
        FactoredConv2d.from_factors(random_factors("cp", (6, 4, 3, 1)), nn.Conv2d(4, 6, 3))
    with pytest.raises(ShapeError, match="weight of a linear layer is"):
        FactoredLinear(random_factors("cp", (4, 5, 2)))
    with pytest.raises(ShapeError, match="kernel of a convolution is"):
        FactoredConv2d(f)
    with pytest.raises(ArgumentError, match="factors is a Parameter; pass a factors object"):
        FactoredLinear.from_factors(linear.weight, linear)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"like is a Tensor; pass a torch\.nn\.Linear"):
        FactoredLinear.from_factors(f, torch.zeros(5, 4))  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="layer is a Tensor"):
        factorize(torch.zeros(5, 4), "svd", 2)  # type: ignore[call-overload]
