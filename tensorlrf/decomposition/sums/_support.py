"""Which entries of a matrix are kept beside a part of low rank, and with which values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._target import Target
from tensorlrf.errors import ArgumentError, unknown
from tensorlrf.factors import SparseTensor
from tensorlrf.factors.arrays import PLACES

PATTERNS = ("top", "2:4", "random")
SPARSITY = 0.95
"""Share of zeros by default."""


def check_support(sparsity: Any, pattern: Any) -> None:
    """Raise ArgumentError for options that cannot be."""
    if pattern not in PATTERNS:
        raise unknown("pattern", pattern, PATTERNS)
    if pattern == "2:4":
        if sparsity is not None:
            raise ArgumentError(
                f"sparsity={sparsity!r} does not go with pattern='2:4', half of whose entries are "
                "zeros; leave it out"
            )
        return
    share = SPARSITY if sparsity is None else sparsity
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
        raise ArgumentError(
            f"sparsity={share!r} must lie in (0, 1): the share of zeros, such as 0.95"
        )


def support_size(shape: tuple[int, int], sparsity: float | None, pattern: str) -> int:
    """How many entries are kept, by checked options."""
    m, n = shape
    if pattern == "2:4":
        return m * n // 2
    return max(1, round((1 - (SPARSITY if sparsity is None else sparsity)) * m * n))


@dataclass(frozen=True)
class Support:
    """How entries of an (m, n) matrix are chosen.

    pattern  "top", the largest ones anywhere; "2:4", the two largest of each four in a row;
             "random", those of `drawn`, whatever the matrix
    count    how many there are
    drawn    a mask (m, n), where the pattern has one
    """

    pattern: str
    count: int
    drawn: Tensor | None = None

    @classmethod
    def of(
        cls,
        shape: tuple[int, int],
        sparsity: float | None,
        pattern: str,
        draws: torch.Generator,
    ) -> Support:
        """Of checked options. Raises ArgumentError for those that cannot be."""
        m, n = shape
        check_support(sparsity, pattern)
        if pattern == "2:4" and n % 4:
            raise ArgumentError(
                f"pattern='2:4' needs inputs in fours, and the matrix {m} x {n} has {n}; take "
                "pattern='top'"
            )
        count = support_size(shape, sparsity, pattern)
        if pattern != "random":
            return cls(pattern, count)
        order = torch.randperm(m * n, generator=draws, device=draws.device)[:count]
        drawn = torch.zeros(m * n, dtype=torch.bool, device=draws.device)
        return cls(pattern, count, drawn.index_fill(0, order, True).reshape(m, n))

    def mask(self, matrix: Tensor, target: Target[Any]) -> Tensor:
        """Of the entries to keep, by what each of them alone adds to the loss."""
        if self.drawn is not None:
            return self.drawn
        size = matrix.abs()
        if target.gram is not None:
            size = size * target.gram.diagonal().clamp(min=0).sqrt().to(size.dtype)
        if self.pattern == "2:4":
            groups = size.reshape(len(size), -1, 4)
            return (
                torch.zeros_like(groups, dtype=torch.bool)
                .scatter(-1, groups.topk(2, dim=-1).indices, True)
                .reshape(size.shape)
            )
        kept = size.flatten().topk(self.count).indices
        whole = torch.zeros(size.numel(), dtype=torch.bool, device=size.device)
        return whole.index_fill(0, kept, True).reshape(size.shape)

    def fitted(self, matrix: Tensor, target: Target[Any]) -> tuple[Tensor, Tensor]:
        """(the mask, the sparse matrix (m, n) on it that is nearest to `matrix`): of the sum of
        squares its entries; in a metric some steps of conjugate gradients from these."""
        mask = self.mask(matrix, target)
        entries = matrix * mask
        gram = target.gram
        if gram is None:
            return mask, entries
        whole = mask.to(torch.float64)
        diagonal = gram.diagonal()
        scale = diagonal.clamp(min=float(diagonal.max()) * 1e-6)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        moved = target.with_rows(matrix.to(torch.float64)).improved(
            entries.to(torch.float64),
            lambda x: x * whole,
            lambda d: d * whole,
            lambda d: d / scale,
        )
        return mask, (moved * whole).to(matrix.dtype)


def packed(mask: Tensor, matrix: Tensor, shape: tuple[int, ...]) -> SparseTensor:
    """The entries of a matrix (m, n) on the mask, as factors of that shape, zeros among them."""
    rows, columns = mask.nonzero(as_tuple=True)
    places = [rows]
    for size in reversed(shape[1:]):
        places.insert(1, columns % size)
        columns = columns // size
    return SparseTensor(matrix[mask], torch.stack(places).to(PLACES), shape)
