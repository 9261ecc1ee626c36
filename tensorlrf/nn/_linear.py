"""The linear layer on factors."""

from __future__ import annotations

import math
from collections.abc import Container
from typing import Any, Self

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from tensorlrf.decomposition.rank import Rank
from tensorlrf.factors import Factors
from tensorlrf.nn._fresh import Fresh, check_sizes
from tensorlrf.nn._layer import FactoredLayer
from tensorlrf.nn._like import like_layer, take_over
from tensorlrf.nn.obstacles import check_layer
from tensorlrf.nn.tall import columns_first, lies_by_columns, tall_matrices
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

    @classmethod
    def new(
        cls,
        in_features: int,
        out_features: int,
        *,
        rank: Rank,
        method: str = "svd",
        bias: bool = True,
        std: float | None = None,
        init: str = "normal",
        random_state: int | torch.Generator | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> Self:
        """A layer to be trained from the start.

        Parameters
        ----------
        in_features, out_features : int
        rank : int, tuple, float or str
            As the decomposition takes it; a share counts parameters, and is an upper bound.
        method : str
            The word of a decomposition that serves such a layer; its form is what is trained. Sizes
            that a fit would choose by a weight are those that cost least, unless options say
            otherwise (`shapes=`, `row_sizes=`, `blocks=`).
        bias : bool
            Drawn as torch draws it.
        std : float, optional
            Standard deviation of the entries of the weight that the factors stand for, by default
            that of torch's layer, 1 / sqrt(3 in_features); sqrt(2 / fan_in) is He's for ReLU.
        init : {"normal", "spectral"}
            Normal numbers in every tensor, all tensors of one norm, and no dense weight is made; or
            the factors of a random dense weight, brought back to its norm (Khodak et al. 2021).
        random_state : int or Generator, optional
            Torch's global generator is left alone.
        device, dtype
            As torch's layers take them.
        **options
            Of the method.

        Returns
        -------
        FactoredLinear

        Raises
        ------
        RankError, ShapeError, ArgumentError
            For what cannot be.
        UnsupportedError
            For a method whose sizes follow from a weight, such as "blr", unless by "spectral".

        References
        ----------
        He et al. 2015 (variance); Khodak et al. 2021, "Initialization and regularization of
        factorized neural layers".

        Examples
        --------
        >>> layer = tensorlrf.nn.FactoredLinear.new(4096, 4096, rank=16, random_state=1)
        >>> layer.factors
        LowRank(4096x4096, rank 16, 131,072 of 16,777,216 parameters = 0.8%, float32, cpu)
        >>> round(float(layer(torch.randn(64, 4096)).detach().std() * 3**0.5), 1)
        1.0
        """
        check_sizes(in_features=in_features, out_features=out_features)
        std = 1 / math.sqrt(3 * in_features) if std is None else std
        fresh = Fresh(std=std, init=init, random_state=random_state, device=device, dtype=dtype)
        shape = (out_features, in_features)
        factors = fresh.factors(shape, "linear", method, rank, options)
        return cls(factors, fresh.bias(out_features, in_features) if bias else None)

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

    # ---- in memory --------------------------------------------------------------------------

    def tall_matrices(self) -> tuple[str, ...]:
        """Parameters with far more rows than columns that inputs are multiplied by as they are."""
        own = tall_matrices(self._assembled())
        return tuple(self._names[n] for n in own if self._names[n] in self._parameters)

    def lie(self, by_columns: Container[str]) -> None:
        """Have these parameters by columns in memory, and all other matrices by rows.

        On a CPU a tall matrix by columns is up to 2.4 times as fast for few rows of inputs; `tune`
        measures it. Their numbers stay, and their shapes: a `view(-1)` of them needs rows, so that
        `train()` lays all by rows again. Files keep the order.

        Parameters
        ----------
        by_columns : container of str
            Of `tall_matrices()`.
        """
        for name, own in self._parameters.items():
            if own is None or own.ndim != 2:
                continue
            if name in by_columns:
                own.data = columns_first(own.data)
            elif lies_by_columns(own):
                own.data = own.data.contiguous()

    def train(self, mode: bool = True) -> Self:
        """As `torch.nn.Module.train`; for training the layer is thawed, its matrices by rows."""
        if mode:
            self.lie(())
        return super().train(mode)

    def _follow_device(self) -> None:
        super()._follow_device()
        if self._device_type != "cpu":  # kernels read tiles
            self.lie(())

    def _rows(self, x: Tensor) -> int:
        return x.numel() // max(1, self.in_features)

    def _default_path_table(self, frozen: bool = False) -> PathTable:
        return PathTable.from_cost(self._here(), rebuild=not frozen)

    def _options_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"
