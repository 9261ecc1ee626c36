"""The transposed linear layer of GPT-2 on factors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Self

from torch import Tensor

from tensorlrf.errors import ShapeError
from tensorlrf.factors import Factors
from tensorlrf.nn._layer import like_layer, take_over
from tensorlrf.nn._like import check_layer
from tensorlrf.nn._linear import FactoredLinear
from tensorlrf.nn._plain import HF_CONV1D


class FactoredHFConv1D(FactoredLinear):
    """y = x W + bias for a W (nx, nf) of which the transpose is held as factors.

    factors  LowRank, CPFactors or TuckerFactors of shape (nf, nx), (out, in) as for every other
             layer; `weight` is (nx, nf), as in transformers.pytorch_utils.Conv1D
    bias     (nf,) or None, of the dtype and on the device of the factors

    Both are copied. Raises ShapeError, ArgumentError or UnsupportedError where they do not fit.
    """

    def __init__(self, factors: Factors, bias: Tensor | None = None) -> None:
        super().__init__(factors, bias)
        self.stands_for = HF_CONV1D

    @property
    def nf(self) -> int:
        """Output features."""
        return self.out_features

    @property
    def nx(self) -> int:
        """Input features."""
        return self.in_features

    def _made_weight(self) -> Tensor:
        return super()._made_weight().T

    def _blank_weight(self) -> Tensor:
        return super()._blank_weight().T

    @classmethod
    def from_factors(cls, factors: Factors, like: Any) -> Self:
        """A layer that runs on `factors`, (out, in), in place of `like`, whose weight is (in, out).

        Bias, dtype, device, training flag and requires_grad are those of `like`, which stays as it
        is. Raises ShapeError where the factors do not stand for the transpose of the weight,
        UnsupportedError where `like` is not exactly a transformers.pytorch_utils.Conv1D.
        """
        check_layer(like, HF_CONV1D, "like")
        nx, nf = like.weight.shape
        if isinstance(factors, Factors) and factors.shape != (nf, nx):
            raise ShapeError(
                f"factors stand for a tensor of shape {factors.shape}, but like.weight is "
                f"({nx}, {nf}), (in, out): decompose its transpose, like.weight.T"
            )
        layer = cls(*like_layer(factors, SimpleNamespace(weight=like.weight.T, bias=like.bias)))
        take_over(layer, like)
        return layer

    def _options_repr(self) -> str:
        return f"nf={self.nf}, nx={self.nx}"
