"""Where a weight comes from: what a target asks of it."""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from tensorlrf.decomposition._input import working_dtype
from tensorlrf.decomposition.linalg._gram import scale_of


class Source(Protocol):
    """A weight (m, ...) as a matrix W (m, n), over a power of four that brings it near one.

    The error of two sides in second moments takes `gram`, `contract` and `residual` alone, where
    there are more rows than columns.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the weight as it was given."""

    @property
    def scale(self) -> float:
        """What W is to be multiplied by to be the weight."""

    @property
    def work(self) -> Tensor:
        """W as a whole, (m, n), in the working dtype."""

    @property
    def matrix(self) -> Tensor:
        """W as a whole, (m, n), float64."""

    def contract(self, side: Tensor, mode: int) -> Tensor:
        """S^T W (r, n) for S (m, r) along mode 0, W S (m, r) for S (n, r) along mode 1; float64."""

    def gram(self) -> Tensor:
        """W^T W (n, n), float64."""

    def residual(self, dense: Tensor) -> Tensor:
        """W - A for A (m, n), float64."""


class DenseSource:
    """A tensor in memory. `scale`, where it is known, spares a look at it."""

    def __init__(self, tensor: Tensor, scale: float | None = None) -> None:
        self.tensor = tensor.detach()
        self._scale = scale

    @property
    def shape(self) -> tuple[int, int]:
        m = int(self.tensor.shape[0])
        return m, self.tensor.numel() // m

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @cached_property
    def scale(self) -> float:
        return scale_of(self.tensor) if self._scale is None else self._scale

    @cached_property
    def matrix(self) -> Tensor:
        return self._over(self.tensor.to(torch.float64))

    @cached_property
    def work(self) -> Tensor:
        """W (m, n) in the working dtype, in rows, so that equal values give equal factors however
        they lie in memory."""
        return self._over(self.tensor.to(working_dtype(self.dtype))).contiguous()

    def contract(self, side: Tensor, mode: int) -> Tensor:
        return side.T @ self.matrix if mode == 0 else self.matrix @ side

    def gram(self) -> Tensor:
        return self.matrix.T @ self.matrix

    def residual(self, dense: Tensor) -> Tensor:
        return self.matrix - dense

    def _over(self, tensor: Tensor) -> Tensor:
        return (tensor if self.scale == 1.0 else tensor / self.scale).reshape(self.shape)
