"""The transposed linear layer of GPT-2 on factors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Self

from torch import Tensor

from tensorlrf.errors import ShapeError
from tensorlrf.factors import Factors
from tensorlrf.nn._like import like_layer, take_over
from tensorlrf.nn._linear import FactoredLinear
from tensorlrf.nn.obstacles import check_layer
from tensorlrf.nn.plain import HF_CONV1D


class FactoredHFConv1D(FactoredLinear):
    """A transposed linear layer: y = x W + bias for a W (nx, nf), its transpose held as factors.

    Both are copied. `weight` is (nx, nf), as in transformers.pytorch_utils.Conv1D.

    Parameters
    ----------
    factors : LowRank, CPFactors or TuckerFactors
        Of shape (nf, nx), (out, in) as for every other layer.
    bias : Tensor of shape (nf,), optional
        Of the dtype and on the device of the factors.

    Raises
    ------
    ShapeError, ArgumentError, UnsupportedError
        Where they do not fit.

    Examples
    --------
    >>> layer = tensorlrf.nn.FactoredHFConv1D(tensorlrf.svd(torch.rand(8, 6), 2))
    >>> layer.weight.shape
    torch.Size([6, 8])
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

        Parameters
        ----------
        factors : Factors
        like : Conv1D of transformers
            It stays as it is.

        Returns
        -------
        FactoredHFConv1D
            Its bias, dtype, device, training flag and requires_grad are those of `like`.

        Raises
        ------
        ShapeError
            Where the factors do not stand for the transpose of the weight.
        UnsupportedError
            Where `like` is not exactly a transformers.pytorch_utils.Conv1D.
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
