"""Monarch matrices: two block-diagonal factors and a fixed permutation between and behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tensorlrf.errors import ShapeError
from tensorlrf.factors._base import Factors
from tensorlrf.factors.arrays import check_together


@dataclass(frozen=True, eq=False, repr=False)
class MonarchFactors(Factors):
    """A Monarch matrix: two block-diagonal factors, a permutation between and behind them.

    `W[(s, q), (k, p)]` is the sum over r of `left[q, s, k, r] right[k, q, r, p]`, with blocks of
    rank r instead of one. Row s Q + q, column k P + p: for each pair (q, k) the S x P block of
    these has rank r.

    Parameters
    ----------
    left : Tensor of shape (Q, S, K, r)
    right : Tensor of shape (K, Q, r, P)
    dense_shape : tuple of int, optional
        (m, n) with S = ceil(m / Q) and P = ceil(n / K): rows and columns beyond are padding, which
        the matrix does not have. (S Q, K P) by default.

    Raises
    ------
    ArgumentError, ShapeError
        Where these do not fit together.

    References
    ----------
    Dao et al. 2022.

    Examples
    --------
    >>> f = tensorlrf.MonarchFactors(torch.ones(2, 3, 4, 1), torch.ones(4, 2, 1, 5))
    >>> f.blocks, f.shape
    ((2, 4), (6, 20))
    """

    left: Tensor
    right: Tensor
    dense_shape: tuple[int, ...] = ()

    format: ClassVar[str] = "monarch"

    def __post_init__(self) -> None:
        self._check_sizes()
        object.__setattr__(self, "dense_shape", tuple(self.dense_shape) or self.padded)
        self.check()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.dense_shape

    @property
    def padded(self) -> tuple[int, int]:
        """The sizes with their padding, (S Q, K P)."""
        Q, S, K, _ = self.left.shape
        return int(S * Q), int(K * self.right.shape[3])

    @property
    def rank(self) -> int:
        """The rank r of each block."""
        return int(self.left.shape[3])

    @property
    def blocks(self) -> tuple[int, int]:
        """The numbers of blocks (Q, K)."""
        return int(self.left.shape[0]), int(self.left.shape[2])

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
        self._check_sizes()
        check_padding("MonarchFactors", self.shape, self.padded, self.blocks)

    def _check_sizes(self) -> None:
        check_together(self.tensors(), "MonarchFactors")
        left, right = tuple(self.left.shape), tuple(self.right.shape)
        if len(left) != 4 or len(right) != 4 or 0 in (*left, *right):
            raise ShapeError(
                f"MonarchFactors: left {left} and right {right} must be (Q, S, K, r) and "
                "(K, Q, r, P), without zeros"
            )
        if (left[2], left[0], left[3]) != right[:3]:
            raise ShapeError(
                f"MonarchFactors: left {left} is (Q, S, K, r), so right must be "
                f"({left[2]}, {left[0]}, {left[3]}, P), got {right}"
            )

    def _dense(self) -> Tensor:
        blocks = self.left.transpose(1, 2) @ self.right.transpose(0, 1)  # (Q, K, S, P)
        whole = blocks.permute(2, 0, 1, 3).reshape(self.padded)
        return whole if self.padded == self.shape else whole[: self.shape[0], : self.shape[1]]


def check_padding(
    owner: str, shape: tuple[int, ...], padded: tuple[int, int], blocks: tuple[int, int]
) -> None:
    """(m, n), padded to the next multiples of the numbers of blocks."""
    fits = len(shape) == 2 and all(
        n > 0 and -(-n // count) * count == whole
        for n, whole, count in zip(shape, padded, blocks, strict=True)
    )
    if not fits:
        raise ShapeError(
            f"{owner}: shape={shape} must be (m, n) that becomes {padded} when it is padded to "
            f"{blocks[0]} and {blocks[1]} equal parts"
        )
