"""The linear layer on factors."""

from __future__ import annotations

from typing import Self

from torch import Tensor, fx, nn
from torch.nn import functional as F

from tensorlrf.factors import Factors
from tensorlrf.nn._layer import FactoredLayer
from tensorlrf.nn._like import like_layer, take_over
from tensorlrf.nn.obstacles import check_layer
from tensorlrf.ops import PathTable, linear_paths
from tensorlrf.ops.forms.lowering import LINEAR


class FactoredLinear(FactoredLayer):
    """A linear layer: y = x W^T + bias for a W (out_features, in_features) held as factors.

    Both are copied.

    Parameters
    ----------
    factors : Factors
        Of shape (out_features, in_features), of any format that `ops.linear` runs on.
    bias : Tensor of shape (out_features,), optional
        Of the dtype and on the device of the factors.

    Raises
    ------
    ShapeError, ArgumentError, UnsupportedError
        Where they do not fit.

    Examples
    --------
    >>> f = tensorlrf.svd(torch.rand(8, 6), 2)
    >>> layer = tensorlrf.nn.FactoredLinear(f, torch.zeros(8))
    >>> layer(torch.rand(5, 6)).shape
    torch.Size([5, 8])
    """

    kind = nn.Linear
    _layer = LINEAR

    def __init__(self, factors: Factors, bias: Tensor | None = None) -> None:
        super().__init__(factors, bias, linear_paths(factors))
        self.out_features, self.in_features = factors.shape
        self._choose()

    @classmethod
    def from_factors(cls, factors: Factors, like: nn.Linear) -> Self:
        """A layer that runs on `factors` in place of `like`.

        Parameters
        ----------
        factors : Factors
        like : Linear
            It stays as it is.

        Returns
        -------
        FactoredLinear
            Its bias (or none), dtype, device, training flag and requires_grad are those of `like`.

        Raises
        ------
        ShapeError
            Where the factors do not stand for a tensor of the weight's shape.
        UnsupportedError
            Where `like` is not a plain torch.nn.Linear.
        """
        check_layer(like, cls.kind, "like")
        layer = cls(*like_layer(factors, like))
        take_over(layer, like)
        return layer

    def forward(self, input: Tensor) -> Tensor:
        """Inputs (..., in_features) to (..., out_features)."""
        if isinstance(input, fx.Proxy):
            return self._traced(input)
        x = input
        path = self._path(x)
        bias = self._tensor("bias")
        if path == "dense":
            return F.linear(x, self._dense_weight(), bias)
        return self._runs[path].run(x, *self._held(), bias)

    def _rows(self, x: Tensor) -> int:
        return x.numel() // max(1, self.in_features)

    def _default_path_table(self, frozen: bool = False) -> PathTable:
        return PathTable.from_cost(self.factors, rebuild=not frozen)

    def _options_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"
