"""Sums of x x^T over rows x: of all columns, or of blocks of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from tensorlrf.decomposition.linalg.compact import BlockDiagonal, Gram

COLUMNS = 1 << 14
"""Columns of X, which are rows here, in one product."""

PRODUCTS = "products"
"""What sums of x x^T are called, and begin to be called where there are several of them."""

SQUARE = 256
"""Columns of a block of a symmetric product, at the least: smaller ones are no faster."""


class Sums(ABC):
    """X^T X over rows X (N, n), part by part, as far as it is kept."""

    @abstractmethod
    def take(self, rows: Tensor) -> None:
        """Add rows (N, n), in float32 or float64."""

    def take_at(self, rows: Tensor, columns: Tensor, n: int) -> None:
        """Add rows with n columns that are zero outside of `columns`, which is what is given."""
        whole = rows.new_zeros(rows.shape[0], n)
        whole[:, columns] = rows
        self.take(whole)

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Add what another one has taken."""

    @abstractmethod
    def mean(self, count: int, *, last: bool = False) -> Gram:
        """The sum over `count`, symmetric; nothing is added any more. The `last` time it is made
        it may take the memory of the sums."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What it has summed, in float64, the very memory that it adds to. Of what is called
        products, symmetric, the upper triangle counts."""

    @abstractmethod
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave of another one of this kind; the memory is its own now."""


class Whole(Sums):
    """All of it: n^2 numbers."""

    def __init__(self, n: int, device: torch.device) -> None:
        self._products = torch.zeros(n, n, dtype=torch.float64, device=device)

    def take(self, rows: Tensor) -> None:
        add_squares(self._products, rows)

    def take_at(self, rows: Tensor, columns: Tensor, n: int) -> None:
        size = len(columns)
        own = self._products.new_zeros(size, size)
        add_squares(own, rows)
        columns = columns.to(own.device)
        self._products[columns[:, None], columns] += mirrored(own)

    def merge(self, other: Self) -> None:
        self._products += other._products

    def mean(self, count: int, *, last: bool = False) -> Tensor:
        whole = mirrored(self._products)
        return whole.div_(count) if last else whole / count

    def tensors(self) -> dict[str, Tensor]:
        return {PRODUCTS: self._products}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self._products = tensors[PRODUCTS]


class Blocks(Sums):
    """Blocks of `width` columns, the last one of what is left: n times width numbers. Of patches a
    width of whole channels has all taps of these."""

    def __init__(self, n: int, width: int, device: torch.device) -> None:
        self._widths = [min(width, n - first) for first in range(0, n, width)]
        self._blocks = [Whole(size, device) for size in self._widths]

    def take(self, rows: Tensor) -> None:
        for block, part in zip(self._blocks, torch.split(rows, self._widths, dim=1), strict=True):
            block.take(part)

    def merge(self, other: Self) -> None:
        for block, more in zip(self._blocks, other._blocks, strict=True):
            block.merge(more)

    def mean(self, count: int, *, last: bool = False) -> BlockDiagonal:
        return BlockDiagonal(tuple(block.mean(count, last=last) for block in self._blocks))

    def tensors(self) -> dict[str, Tensor]:
        each = enumerate(self._blocks)
        return {f"{PRODUCTS}.{k}": block.tensors()[PRODUCTS] for k, block in each}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        for k, block in enumerate(self._blocks):
            block.restore({PRODUCTS: tensors[f"{PRODUCTS}.{k}"]})


def raised(x: Tensor) -> Tensor:
    """float64 stays, all else becomes float32."""
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def add_products(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left^T right for (N, n) matrices; `total` is float64."""
    for start in range(0, left.shape[0], COLUMNS):
        total += left[start : start + COLUMNS].T @ right[start : start + COLUMNS]


def add_squares(total: Tensor, rows: Tensor) -> None:
    """total += rows^T rows for (N, n) rows, in the blocks on and above the diagonal alone:
    `mirrored` makes it whole. Wide matrices save up to half of the work."""
    n = rows.shape[1]
    step = max(SQUARE, -(-n // 8))
    for start in range(0, rows.shape[0], COLUMNS):
        part = rows[start : start + COLUMNS]
        for top in range(0, n, step):
            total[top : top + step, top:] += part[:, top : top + step].T @ part[:, top:]


def mirrored(total: Tensor) -> Tensor:
    """`total`, made exactly symmetric in place after one half of it, which `add_squares` makes."""
    for top in range(0, len(total), SQUARE):
        rows = total[top : top + SQUARE, top:]
        corner, others = rows[:, : len(rows)], rows[:, len(rows) :]
        corner.copy_(corner.triu() + corner.triu(1).T)
        total[top + SQUARE :, top : top + SQUARE] = others.T
    return total
