"""Sweeps of CP over a small tensor, by numpy in the memory of torch's tensors: what a small problem
takes is calls, and numpy's take a third of the time of torch's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from tensorlrf.decomposition.cp._state import CPState
from tensorlrf.decomposition.cp._sweep import LEAST, Sweeps
from tensorlrf.decomposition.linalg.multilinear._mttkrp import CutTensor
from tensorlrf.factors.algebra import khatri_rao

Array = np.ndarray[Any, Any]

SMALL = 1 << 18
"""Multiply-adds of a product with the tensor, with a Gram or of one, and of a system, up to which a
problem is small: OpenBLAS, of which numpy is built, makes these on one thread, however many it has,
and a call counts for more than what it does."""

SMALL_VECTOR = 1 << 13
"""Likewise for a product with a vector, as in rank one."""


def is_small(tensor: CutTensor, rank: int) -> bool:
    """Whether sweeps from one start are left to numpy."""
    entries = tensor.blocks.numel()
    work = max(entries * rank, max(tensor.shape) * rank**2, rank**3)
    within = entries <= SMALL_VECTOR if rank == 1 else work <= SMALL
    return within and tensor.blocks.device.type == "cpu"


class NumpySweeps(Sweeps[Array]):
    """Of one start, in the memory of the host."""

    def __init__(
        self, tensor: CutTensor, state: CPState, fixed: frozenset[int], unit: float
    ) -> None:
        super().__init__(tensor, state, fixed, unit)
        self.blocks: Array = tensor.blocks.numpy()
        self.dtype = self.blocks.dtype
        self.tiny = torch.finfo(tensor.blocks.dtype).tiny
        self.identity = np.eye(self.rank)
        self.least = self.identity * LEAST[tensor.blocks.dtype]

    def run(self, ridges: Sequence[float]) -> Self:
        with np.errstate(all="ignore"):  # as torch does
            return super().run(ridges)

    def square_residuals(self) -> list[float]:
        p, _, q = self.cut.blocks
        weights = self._near(self.weights * self.unit)  # as they are returned
        inner = khatri_rao(tuple([self.columns[k] for k in self.cut.inner])) * weights  # (M, r)
        outer = khatri_rao(tuple([self.columns[k] for k in self.cut.outer])).reshape(p, q, -1)
        residual = self._wide(self.blocks - inner @ outer.transpose(0, 2, 1))
        return [float(np.square(residual).sum())]

    def _array(self, tensor: Tensor) -> Array:
        array: Array = tensor.numpy()
        return array

    def _tensor(self, array: Array) -> Tensor:
        return torch.from_numpy(array)

    def _contract_outer(self) -> Array:
        p, _, q = self.cut.blocks
        outer = khatri_rao(tuple([self.columns[k] for k in self.cut.outer])).reshape(p, q, -1)
        products = [block.dot(rows) for block, rows in zip(self.blocks, outer, strict=True)]
        return reduce(add, products)

    def _contract_inner(self) -> Array:
        inner = khatri_rao(tuple([self.columns[k] for k in self.cut.inner]))
        products: Array = self.blocks.transpose(0, 2, 1) @ inner  # (P, Q, r)
        return products.reshape(-1, self.rank)

    def _contract_right(self, partial: Array, right: Array) -> Array:
        product: Array = np.einsum("abc,bc->ac", partial.reshape(-1, *right.shape), right)
        return product

    def _contract_left(self, partial: Array, left: Array) -> Array:
        a, c = left.shape
        product: Array = np.einsum("abc,ac->bc", partial.reshape(a, -1, c), left)
        return product

    def _step(self, old: Array, rhs: Array, system: Array, ridged: Array) -> Array:
        inverse = np.linalg.inv(system * ridged + self.least).astype(self.dtype)
        residual = rhs * (1 / self.unit) - old.dot(system.astype(self.dtype))
        step: Array = residual.dot(inverse)
        return old + step

    def _gram(self, columns: Array) -> Array:
        wide = columns.astype(np.float64)
        product: Array = wide.T.dot(wide)
        return product

    def _unit_columns(self, mode: int) -> tuple[Array, Array]:
        length = np.sqrt(self.grams[mode].diagonal())
        if length.min() > self.tiny:
            return self._near(self.columns[mode] / length), length
        unit = self._near(self.columns[mode] / np.maximum(length, self.tiny))
        return np.where(length > self.tiny, unit, self.start[mode]), length

    def _ratio(self, product: Array, square: Array) -> Array:
        return product / square if square > 0 else np.ones(1)

    def _wide(self, array: Array) -> Array:
        return array.astype(np.float64)

    def _near(self, array: Array) -> Array:
        return array.astype(self.dtype)
