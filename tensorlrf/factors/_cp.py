"""Canonical polyadic (CP) format: a sum of rank-one tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors._base import Factors
from tensorlrf.factors._lowrank import LowRank
from tensorlrf.factors._terms import checked, refuse_gram
from tensorlrf.factors.algebra import khatri_rao
from tensorlrf.factors.arrays import check_together


@dataclass(frozen=True, eq=False, repr=False)
class CPFactors(Factors):
    """A sum of rank-one tensors (CP).

    It is the sum over j of `weights[j] * outer(factors[0][:, j], factors[1][:, j], ...)`. Unpacks
    as `weights, factors`, like tensorly's CPTensor.

    Parameters
    ----------
    weights : Tensor of shape (r,)
    factors : tuple of Tensor
        One matrix (n_k, r) a mode.

    Raises
    ------
    ArgumentError, ShapeError
        Where these do not fit together.

    References
    ----------
    Kolda & Bader 2009, eq. 3.4.

    Examples
    --------
    >>> weights, factors = tensorlrf.CPFactors(torch.ones(2), (torch.ones(4, 2), torch.ones(5, 2)))
    >>> len(factors)
    2
    """

    weights: Tensor
    factors: tuple[Tensor, ...]

    format: ClassVar[str] = "cp"

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", tuple(self.factors))
        self.check()

    def __iter__(self) -> Iterator[Any]:
        return iter((self.weights, self.factors))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(f.shape[0]) for f in self.factors)

    @property
    def rank(self) -> int:
        """The number of terms r."""
        return int(self.weights.shape[0])

    def leading(self, rank: Any) -> CPFactors:
        r = checked(rank, self.rank)
        cut = {name: t[..., :r] for name, t in self.tensors().items()}
        return self._assemble(cut, self._context())

    def by_energy(self, gram: Tensor | None = None) -> CPFactors:
        refuse_gram(self, gram)
        norms = self.weights.to(torch.float64).abs()
        for f in self.factors:
            norms = norms * torch.linalg.vector_norm(f, dim=0, dtype=torch.float64)
        order = norms.argsort(descending=True, stable=True)
        return CPFactors(self.weights[order], tuple(f[:, order] for f in self.factors))

    def plus(self, left: Tensor, right: Tensor) -> CPFactors:
        if len(self.factors) != 2:
            return super().plus(left, right)
        more = LowRank(left, right, self.shape)
        check_together({"self": self.weights, "left": left}, "plus")
        weights = torch.cat([self.weights, self.weights.new_ones(more.rank)])
        sides = zip(self.factors, (left, right.T), strict=True)
        return CPFactors(weights, tuple(torch.cat([own, new], 1) for own, new in sides))

    def tensors(self) -> dict[str, Tensor]:
        named = {"weights": self.weights}
        named.update((f"factors.{k}", f) for k, f in enumerate(self.factors))
        return named

    def meta(self) -> dict[str, Any]:
        return {"order": len(self.factors)}

    @classmethod
    def _fields(cls, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
        modes = tuple(tensors[f"factors.{k}"] for k in range(meta["order"]))
        return {"weights": tensors["weights"], "factors": modes}

    def check(self) -> None:
        if not self.factors:
            raise ArgumentError("CPFactors: factors=() is empty; give one matrix a mode")
        check_together(self.tensors(), "CPFactors")
        if self.weights.ndim != 1:
            raise ShapeError(f"CPFactors: weights {tuple(self.weights.shape)} must be (r,)")
        for k, f in enumerate(self.factors):
            if f.ndim != 2 or f.shape[1] != self.rank:
                raise ShapeError(
                    f"CPFactors: factors[{k}] is {tuple(f.shape)}; it must be (n_{k}, "
                    f"{self.rank}), one column for each of the {self.rank} weights"
                )

    def _dense(self) -> Tensor:
        # Two halves of balanced size, so that neither Khatri-Rao product outgrows the result.
        cut = _balanced_cut(self.shape)
        left = khatri_rao(self.factors[:cut]) * self.weights  # (prod of first sizes, r)
        if cut == len(self.factors):
            return left.sum(1).reshape(self.shape)
        right = khatri_rao(self.factors[cut:])  # (prod of last sizes, r)
        return (left @ right.T).reshape(self.shape)


def _balanced_cut(shape: tuple[int, ...]) -> int:
    """Where to cut the modes in two so that the larger product of sizes is smallest."""
    # Plain comparisons: this is traced with symbolic sizes.
    best, least = len(shape), math.prod(shape)
    for cut in range(1, len(shape)):
        larger = max(math.prod(shape[:cut]), math.prod(shape[cut:]))
        if larger <= least:
            best, least = cut, larger
    return best
