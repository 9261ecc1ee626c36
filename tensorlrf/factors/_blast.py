"""A grid of blocks that share their bases along rows and columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tensorlrf.errors import ShapeError
from tensorlrf.factors._base import Factors
from tensorlrf.factors._monarch import check_padding
from tensorlrf.factors.arrays import check_together


@dataclass(frozen=True, eq=False, repr=False)
class BlastFactors(Factors):
    """A grid of blocks that share bases: block (i, j) is `left[i] diag(scales[i, j]) right[j]`.

    Parameters
    ----------
    left : Tensor of shape (p, mb, r)
    right : Tensor of shape (q, r, nb)
    scales : Tensor of shape (p, q, r)
    dense_shape : tuple of int, optional
        (m, n) with mb = ceil(m / p) and nb = ceil(n / q): rows and columns beyond are padding,
        which the matrix does not have. (p mb, q nb) by default.

    Raises
    ------
    ArgumentError, ShapeError
        Where these do not fit together.

    References
    ----------
    Lee et al. 2024, "BLAST", eq. 2.

    Examples
    --------
    >>> f = tensorlrf.BlastFactors(torch.ones(2, 3, 1), torch.ones(4, 1, 5), torch.ones(2, 4, 1))
    >>> f.blocks, f.shape
    ((2, 4), (6, 20))
    """

    left: Tensor
    right: Tensor
    scales: Tensor
    dense_shape: tuple[int, ...] = ()

    format: ClassVar[str] = "blast"

    def __post_init__(self) -> None:
        self._check_sizes()
        object.__setattr__(self, "dense_shape", tuple(self.dense_shape) or self.padded)
        self.check()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.dense_shape

    @property
    def padded(self) -> tuple[int, int]:
        """The sizes with their padding, (p mb, q nb)."""
        p, mb, _ = self.left.shape
        q, _, nb = self.right.shape
        return int(p * mb), int(q * nb)

    @property
    def rank(self) -> int:
        """The number r of columns of every `left[i]`."""
        return int(self.left.shape[2])

    @property
    def blocks(self) -> tuple[int, int]:
        """The numbers of blocks (p, q)."""
        return int(self.left.shape[0]), int(self.right.shape[0])

    def tensors(self) -> dict[str, Tensor]:
        return {"left": self.left, "right": self.right, "scales": self.scales}

    def meta(self) -> dict[str, Any]:
        return {"shape": list(self.shape)}

    @classmethod
    def _fields(cls, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
        named = {name: tensors[name] for name in ("left", "right", "scales")}
        return {**named, "dense_shape": tuple(meta["shape"])}

    def check(self) -> None:
        self._check_sizes()
        check_padding("BlastFactors", self.shape, self.padded, self.blocks)

    def _check_sizes(self) -> None:
        check_together(self.tensors(), "BlastFactors")
        left, right, scales = (tuple(t.shape) for t in self.tensors().values())
        if len(left) != 3 or len(right) != 3 or 0 in (*left, *right):
            raise ShapeError(
                f"BlastFactors: left {left} and right {right} must be (p, mb, r) and (q, r, nb), "
                "without zeros"
            )
        if left[2] != right[1]:
            raise ShapeError(
                f"BlastFactors: left {left} has rank {left[2]} and right {right} rank {right[1]}; "
                "both are r and must agree"
            )
        if scales != (left[0], right[0], left[2]):
            raise ShapeError(
                f"BlastFactors: scales is {scales}; it must be (p, q, r) = "
                f"({left[0]}, {right[0]}, {left[2]})"
            )

    def _dense(self) -> Tensor:
        # By columns of blocks: scaled for all of them at once, left would be q times as large.
        columns = [
            (self.left * self.scales[:, j, None]) @ self.right[j]  # (p, mb, nb)
            for j in range(len(self.right))
        ]
        whole = torch.cat(columns, dim=2).reshape(self.padded)
        return whole if self.padded == self.shape else whole[: self.shape[0], : self.shape[1]]
