"""Tensor ring: a train whose ends are joined."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors._base import Factors
from tensorlrf.factors._tt import Train, check_train
from tensorlrf.factors.algebra import chain_product
from tensorlrf.factors.arrays import check_together


@dataclass(frozen=True, eq=False, repr=False)
class TRFactors(Train, Factors):
    """A tensor ring: a train whose ends are joined, reshaped to `dense_shape`.

    `X[i_0, ..., i_{N-1}] = trace(cores[0][:, i_0, :] ... cores[N-1][:, i_{N-1}, :])`. Iterates over
    its cores, like tensorly's TRTensor.

    Parameters
    ----------
    cores : tuple of Tensor
        Core k is (r_k, n_k, r_{k+1}), with r_N = r_0.
    dense_shape : tuple of int, optional
        Each of its entries is the product of the n_k of some successive cores: a linear weight
        (m, n) may have the digits of its rows and then those of its columns as modes.
        (n_0, ..., n_{N-1}) by default.

    Raises
    ------
    ArgumentError, ShapeError
        Where these do not fit together.

    References
    ----------
    Zhao et al. 2016, eq. 2.

    Examples
    --------
    >>> f = tensorlrf.TRFactors([torch.ones(3, n, 3) for n in (2, 4, 6)], dense_shape=(8, 6))
    >>> f.sizes, f.splits
    ((2, 4, 6), (2, 1))
    """

    cores: tuple[Tensor, ...]
    dense_shape: tuple[int, ...] = ()

    format: ClassVar[str] = "tr"

    def __post_init__(self) -> None:
        object.__setattr__(self, "cores", tuple(self.cores))
        if not self.cores:
            raise ArgumentError("TRFactors: cores=() is empty; give one core a mode")
        check_together(self.tensors(), "TRFactors")
        check_train("TRFactors", self.cores, 3, ring=True)
        shape = self.dense_shape or self.sizes
        object.__setattr__(self, "dense_shape", tuple(int(n) for n in shape))
        self.check()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.dense_shape

    @property
    def sizes(self) -> tuple[int, ...]:
        """The n_k of every core."""
        return tuple(int(c.shape[1]) for c in self.cores)

    def meta(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "order": len(self.cores)}

    @classmethod
    def _fields(cls, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
        cores = tuple(tensors[f"cores.{k}"] for k in range(meta["order"]))
        return {"cores": cores, "dense_shape": tuple(meta["shape"])}

    def check(self) -> None:
        check_together(self.tensors(), "TRFactors")
        check_train("TRFactors", self.cores, 3, ring=True)
        if not self.shape or self.splits is None:
            raise ShapeError(
                f"TRFactors: shape={self.shape} does not hold cores of sizes {self.sizes}; each of "
                "its entries must be the product of the sizes of successive cores"
            )

    @property
    def splits(self) -> tuple[int, ...] | None:
        """How many cores belong to each entry of `shape`; None where they do not fit."""
        counts, sizes = [], list(self.sizes)
        for n in self.shape:
            product, count = 1, 0
            while sizes and (product < n or (sizes[0] == 1 and product == n and count == 0)):
                product *= sizes.pop(0)
                count += 1
            if product != n or count == 0:
                return None
            counts.append(count)
        while sizes and sizes[0] == 1:
            sizes.pop(0)
            counts[-1] += 1
        return None if sizes else tuple(counts)

    def _dense(self) -> Tensor:
        half = max(1, len(self.cores) // 2)
        if half == len(self.cores):
            (core,) = self.cores
            return core.diagonal(dim1=0, dim2=2).sum(-1).reshape(self.shape)
        # The two halves meet at both ends: one product over (r_half, r_0).
        first = chain_product(self.cores[:half])  # (r_0, P, r_half)
        second = chain_product(self.cores[half:])  # (r_half, Q, r_0)
        left = first.transpose(0, 1).flatten(1)  # (P, r_0 r_half)
        right = second.permute(2, 0, 1).flatten(0, 1)  # (r_0 r_half, Q)
        assert math.prod(self.sizes) == left.shape[0] * right.shape[1]
        return (left @ right).reshape(self.shape)
