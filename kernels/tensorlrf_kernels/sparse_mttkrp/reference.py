"""The plain torch meaning of `sparse_mttkrp`, and the same a block of nonzeros at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MOST_ENTRIES = 1 << 18  # of the rows that are gathered at once: what a core's own cache holds


def sparse_mttkrp(
    values: Tensor, indices: Tensor, starts: Tensor, factors: Sequence[Tensor]
) -> Tensor:
    """y[i] = sum over j from starts[i] up to starts[i + 1] of values[j] times the product over k of
    the rows factors[k][indices[k, j]].

    values (nnz,), indices (K, nnz), starts (rows + 1,), factors[k] (n_k, c); returns (rows, c).
    """
    terms = values[:, None]
    for factor, index in zip(factors, indices, strict=True):
        terms = terms * factor[index]
    total = values.new_zeros(starts.shape[0] - 1, factors[0].shape[1])
    return total.index_add(0, rows_of(starts, values.shape[0]), terms)


def rows_of(starts: Tensor, nnz: int) -> Tensor:
    """The row (nnz,) of each nonzero, int64."""
    rows = torch.arange(starts.shape[0] - 1, device=starts.device)
    return torch.repeat_interleave(rows, torch.diff(starts), output_size=nnz)


def in_blocks(values: Tensor, indices: Tensor, starts: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """The same without more memory than the result and a block of rows take. What is gathered stays
    in cache until it is summed; sums have a fixed order."""
    rows, columns, nnz = len(starts) - 1, factors[0].shape[1], len(values)
    total = values.new_zeros(rows, columns)
    if not (rows and columns and nnz):
        return total
    size = min(nnz, max(1, MOST_ENTRIES // columns))
    begins = torch.arange(0, nnz, size, device=starts.device, dtype=starts.dtype)
    ends = (begins + size).clamp_(max=nnz)
    # The rows of the first and of the last nonzero of each block: there may be empty ones between.
    edges = torch.searchsorted(starts, torch.stack([begins, ends - 1]), right=True).sub_(1)
    bags = _Bags(values, factors, size)
    for begin, first, last in zip(begins.tolist(), *edges.tolist(), strict=True):
        end = min(begin + size, nnz)
        offsets = (starts[first : last + 1] - begin).clamp_(min=0)
        total[first : last + 1] += bags.sums(values[begin:end], indices[:, begin:end], offsets)
    return total


class _Bags:
    """Sums over nonzeros as torch's bags of embeddings: these add up weighted rows of a table, in
    order, with no product of row and weight in memory.

    With one factor it is the table; with several the table is made, by `size` rows at most.
    """

    def __init__(self, values: Tensor, factors: Sequence[Tensor], size: int) -> None:
        self.factors = [factor.contiguous() for factor in factors]
        made = 0 if len(factors) == 1 else size
        self.table, self.other = (values.new_empty(made, factors[0].shape[1]) for _ in range(2))
        self.counted = torch.arange(made, dtype=torch.int32, device=values.device)

    def sums(self, values: Tensor, indices: Tensor, offsets: Tensor) -> Tensor:
        """(rows, c), of rows that begin at `offsets` (rows,) among these nonzeros."""
        table, places = self.factors[0], indices[0]
        if len(self.factors) > 1:
            count = len(values)
            table, other, places = self.table[:count], self.other[:count], self.counted[:count]
            torch.index_select(self.factors[0], 0, indices[0], out=table)
            for factor, index in zip(self.factors[1:], indices[1:], strict=True):
                table.mul_(torch.index_select(factor, 0, index, out=other))
        bags = torch.embedding_bag(
            table,
            places.contiguous(),
            offsets.to(places.dtype),
            mode=0,  # sums
            per_sample_weights=values.contiguous(),
        )
        return bags[0]


def value_gradient(dy: Tensor, indices: Tensor, rows: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """(nnz,): for each nonzero the sum over the product of a row of dy (rows, c) and those of all
    factors."""
    found = dy.new_empty(indices.shape[1])
    size = max(1, MOST_ENTRIES // max(1, dy.shape[1]))
    for begin in range(0, len(found), size):
        part = slice(begin, begin + size)
        product = dy.index_select(0, rows[part])
        for factor, index in zip(factors, indices[:, part], strict=True):
            product *= factor.index_select(0, index)
        found[part] = product.sum(1)
    return found
