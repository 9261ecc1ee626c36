"""A sweep over the modes of a tensor by a dimension tree (Phan, Tichavsky & Cichocki 2013)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic

from torch import Tensor

from tensorlrf.decomposition.linalg.multilinear._mttkrp import (
    CutTensor,
    ModeCut,
    contract_left,
    contract_right,
    split,
)
from tensorlrf.factors.algebra import khatri_rao
from tensorlrf.factors.arrays import A


class Tree(ABC, Generic[A]):
    """What updates factors one after the other, each from its MTTKRP with those of all others as
    they are by then.

    columns  (n_k, c) of each mode
    fixed    the modes that are left as they are
    """

    cut: ModeCut
    columns: list[A]
    fixed: frozenset[int]

    def _over_modes(self) -> None:
        if self._any_free(self.cut.inner):
            self._descend(self._contract_outer(), self.cut.inner)
        if self._any_free(self.cut.outer):
            self._descend(self._contract_inner(), self.cut.outer)

    def _any_free(self, modes: tuple[int, ...]) -> bool:
        return not self.fixed.issuperset(modes)

    def _descend(self, partial: A, modes: tuple[int, ...]) -> None:
        """Update `modes` in order, from the tensor already contracted over all others."""
        if len(modes) == 1:
            self._update(modes[0], partial)
            return
        at = split(tuple([self.cut.shape[k] for k in modes]))
        left, right = modes[:at], modes[at:]
        if self._any_free(left):
            other = khatri_rao(tuple([self.columns[k] for k in right]))
            self._descend(self._contract_right(partial, other), left)
        if self._any_free(right):
            other = khatri_rao(tuple([self.columns[k] for k in left]))
            self._descend(self._contract_left(partial, other), right)

    @abstractmethod
    def _update(self, mode: int, rhs: A) -> None:
        """Give the mode its new columns, from its MTTKRP (n_mode, c)."""

    @abstractmethod
    def _contract_outer(self) -> A:
        """X contracted with the columns of the outer modes, (M, c)."""

    @abstractmethod
    def _contract_inner(self) -> A:
        """X contracted with the columns of the inner modes, (P Q, c)."""

    @abstractmethod
    def _contract_right(self, partial: A, right: A) -> A:
        """(a b, c) with (b, c) over b -> (a, c), column by column."""

    @abstractmethod
    def _contract_left(self, partial: A, left: A) -> A:
        """(a b, c) with (a, c) over a -> (b, c), column by column."""


class TorchTree(Tree[Tensor]):
    """Of a dense tensor, on its device."""

    tensor: CutTensor

    def _contract_outer(self) -> Tensor:
        return self.tensor.contract_outer(self.columns)

    def _contract_inner(self) -> Tensor:
        return self.tensor.contract_inner(self.columns)

    def _contract_right(self, partial: Tensor, right: Tensor) -> Tensor:
        return contract_right(partial, right)

    def _contract_left(self, partial: Tensor, left: Tensor) -> Tensor:
        return contract_left(partial, left)
