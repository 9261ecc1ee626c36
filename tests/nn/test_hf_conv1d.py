"""The transposed linear layer of transformers, told by its name."""

from __future__ import annotations

import copy
import importlib
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError
from tensorlrf.nn import FactoredHFConv1D, FactoredLinear
from tensorlrf.nn.obstacles import why_not
from tensorlrf.nn.plain import is_hf_conv1d
from tensorlrf.ops import PathTable
from tests.ops.samples import FORMATS, random_factors


class Conv1D(nn.Module):
    """Looks like transformers.pytorch_utils.Conv1D."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf) * 0.02)
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.addmm(self.bias, x.reshape(-1, self.nx), self.weight)
        return y.reshape(*x.shape[:-1], self.nf)


Conv1D.__module__ = "transformers.pytorch_utils"


@pytest.mark.parametrize("format", FORMATS)
def test_it_computes_what_the_layer_does(format: str) -> None:
    f = random_factors(format, (7, 5))
    like = Conv1D(7, 5).double()
    with torch.no_grad():
        like.weight.copy_(f.to_dense().T)
    layer = FactoredHFConv1D.from_factors(f, like)
    assert (layer.nf, layer.nx, layer.stands_for) == (7, 5, "Conv1D")
    assert copy.deepcopy(layer).stands_for == "Conv1D"
    assert layer.weight.shape == like.weight.shape
    torch.testing.assert_close(layer.weight.clone(), like.weight)
    assert layer.factors.shape == (7, 5)
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    for path in layer.paths:
        layer.path_table = PathTable.single(path)
        torch.testing.assert_close(layer(x), like(x), rtol=0, atol=1e-12)


def test_everything_of_the_layer_is_kept() -> None:
    like = Conv1D(7, 5).to(torch.bfloat16).eval()
    like.bias.requires_grad_(False)
    layer = FactoredHFConv1D.from_factors(random_factors("lowrank", (7, 5)), like)
    assert not layer.training
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    assert [name for name, p in layer.named_parameters() if not p.requires_grad] == ["bias"]
    assert repr(layer).startswith("FactoredHFConv1D(nf=7, nx=5, bias=True, format=lowrank")


def test_only_that_type() -> None:
    assert is_hf_conv1d(Conv1D(7, 5))
    assert why_not(Conv1D(7, 5)) == ""

    class Other(Conv1D):
        pass

    assert why_not(Other(7, 5)) == "neither Linear nor a convolution"
    f = random_factors("lowrank", (7, 5))
    with pytest.raises(UnsupportedError, match=r"is a Other; pass a transformers\.pytorch_utils"):
        FactoredHFConv1D.from_factors(f, Other(7, 5))
    with pytest.raises(UnsupportedError, match=r"is a Linear; pass a transformers\.pytorch_utils"):
        FactoredHFConv1D.from_factors(f, nn.Linear(5, 7))
    with pytest.raises(UnsupportedError, match=r"is a Conv1D; pass a torch\.nn\.Linear"):
        FactoredLinear.from_factors(f, Conv1D(7, 5))  # type: ignore[arg-type]
    hooked = Conv1D(7, 5)
    hooked.register_forward_hook(lambda *_: None)
    with pytest.raises(UnsupportedError, match="is a Conv1D; has hooks"):
        FactoredHFConv1D.from_factors(f, hooked)


def test_factors_are_those_of_the_transpose() -> None:
    like = Conv1D(7, 5)
    with pytest.raises(ShapeError, match=r"like.weight is \(5, 7\), \(in, out\): decompose its"):
        FactoredHFConv1D.from_factors(tensorlrf.svd(like.weight, 2), like)
    with pytest.raises(ArgumentError, match="factors is a Parameter; pass a factors object"):
        FactoredHFConv1D.from_factors(like.weight, like)  # type: ignore[arg-type]
    layer = FactoredHFConv1D.from_factors(tensorlrf.svd(like.weight.T, 5), like)
    torch.testing.assert_close(layer.weight.clone(), like.weight, rtol=0, atol=1e-6)


def test_transformers_has_it_where_it_is_looked_for() -> None:
    utils = importlib.import_module("transformers.pytorch_utils")
    assert is_hf_conv1d(utils.Conv1D(7, 5))
    assert why_not(utils.Conv1D(7, 5)) == ""


def test_transformers_is_not_imported() -> None:
    code = (
        "import sys, torch, tensorlrf\n"
        "from tensorlrf.nn.obstacles import why_not\n"
        "assert why_not(torch.nn.Linear(4, 5)) == ''\n"
        "assert why_not(torch.nn.LayerNorm(4))\n"
        "assert 'transformers' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
