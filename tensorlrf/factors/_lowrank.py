"""A matrix, or a tensor seen as one, of low rank."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tensorlrf.errors import ShapeError
from tensorlrf.factors._base import Factors
from tensorlrf.factors._terms import checked, principal
from tensorlrf.factors.arrays import check_together


@dataclass(frozen=True, eq=False, repr=False)
class LowRank(Factors):
    """A matrix, or a tensor seen as one, as `left @ right`.

    Parameters
    ----------
    left : Tensor of shape (m, r)
    right : Tensor of shape (r, n)
    dense_shape : tuple of int, optional
        Shape of the whole: its first entry is m, the others multiply to n. A linear weight is
        (m, n); a conv kernel (O, I, kh, kw) is the matrix (O, I kh kw). (m, n) by default.

    Raises
    ------
    ArgumentError, ShapeError
        Where these do not fit together.

    Examples
    --------
    >>> f = tensorlrf.LowRank(torch.ones(8, 2), torch.ones(2, 27), dense_shape=(8, 3, 3, 3))
    >>> f.to_dense().shape
    torch.Size([8, 3, 3, 3])
    """

    left: Tensor
    right: Tensor
    dense_shape: tuple[int, ...] = ()

    format: ClassVar[str] = "lowrank"

    def __post_init__(self) -> None:
        check_together(self.tensors(), "LowRank")
        matrix = (*self.left.shape[:1], *self.right.shape[-1:])
        object.__setattr__(self, "dense_shape", tuple(int(n) for n in self.dense_shape or matrix))
        self._check_sizes()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.dense_shape

    @property
    def rank(self) -> int:
        """The number of columns of `left`, r."""
        return int(self.left.shape[1])

    def leading(self, rank: Any) -> LowRank:
        r = checked(rank, self.rank)
        cut = {"left": self.left[:, :r], "right": self.right[:r]}
        return self._assemble(cut, self._context())

    def by_energy(self, gram: Tensor | None = None) -> LowRank:
        return LowRank(*principal(self.left, self.right, gram), self.shape)

    def plus(self, left: Tensor, right: Tensor) -> LowRank:
        LowRank(left, right, self.shape)  # which looks at their sizes
        check_together({"self": self.left, "left": left}, "plus")
        together = torch.cat([self.left, left], 1), torch.cat([self.right, right])
        return LowRank(*together, self.shape)

    def tensors(self) -> dict[str, Tensor]:
        return {"left": self.left, "right": self.right}

    def meta(self) -> dict[str, Any]:
        return {"shape": list(self.shape)}

    @classmethod
    def _fields(cls, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "left": tensors["left"],
            "right": tensors["right"],
            "dense_shape": tuple(meta["shape"]),
        }

    def check(self) -> None:
        check_together(self.tensors(), "LowRank")
        self._check_sizes()

    def _check_sizes(self) -> None:
        if self.left.ndim != 2 or self.right.ndim != 2:
            raise ShapeError(
                f"LowRank: left {tuple(self.left.shape)} and right {tuple(self.right.shape)} "
                "must be matrices (m, r) and (r, n)"
            )
        if self.left.shape[1] != self.right.shape[0]:
            raise ShapeError(
                f"LowRank: left has {self.left.shape[1]} columns and right "
                f"{self.right.shape[0]} rows; both are the rank and must agree"
            )
        m, n = self.left.shape[0], self.right.shape[1]
        if not self.shape or self.shape[0] != m or math.prod(self.shape[1:]) != n:
            raise ShapeError(
                f"LowRank: shape={self.shape} does not hold a {m} x {n} matrix; its first entry "
                f"must be {m} and the others must multiply to {n}"
            )

    def _dense(self) -> Tensor:
        return (self.left @ self.right).reshape(self.shape)
