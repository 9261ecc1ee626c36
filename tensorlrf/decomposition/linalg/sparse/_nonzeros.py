"""The nonzeros of a sparse tensor, sorted by each mode in turn, and what is computed of them alone.

All memory is linear in the nonzeros, however long the modes are: rows that hold none are left out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from tensorlrf.factors import SparseTensor
from tensorlrf_kernels.sparse_mttkrp import sparse_mttkrp

_DENSER = 4
"""Times as many rows as nonzeros up to which a mode's rows are counted, else sorted."""

FLOOR = 4 * torch.finfo(torch.float64).eps
"""Squared relative errors below are rounding of the norms that they come from, and told as this."""

_ENTRIES = 1 << 18
"""Of a block of rows that are gathered for single entries of a model."""


@dataclass(frozen=True)
class Sorted:
    """The nonzeros sorted by one mode.

    values   (nnz,)
    indices  (order - 1, nnz), along the other modes
    starts   (rows + 1,) int64, where those of each row begin
    """

    values: Tensor
    indices: Tensor
    starts: Tensor

    def mttkrp(self, factors: Sequence[Tensor]) -> Tensor:
        """(rows, c), of a factor (n_k, c) for each other mode."""
        return sparse_mttkrp(self.values, self.indices, self.starts, factors)


@dataclass(frozen=True)
class Nonzeros:
    """A sparse tensor over the rows that its nonzeros have.

    values       (nnz,) in a working dtype, over `scale`
    coordinates  (order, nnz) among these rows, in lexicographic order
    kept         of each mode the rows of the tensor that these are, ascending; None for all
    shape        of the tensor
    scale        the tensor is scale times these values
    """

    values: Tensor
    coordinates: Tensor
    kept: tuple[Tensor | None, ...]
    shape: tuple[int, ...]
    scale: float = 1.0
    by_mode: dict[int, Sorted] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        tensor: SparseTensor,
        dtype: torch.dtype,
        *,
        least: int = 1,
        whole: Collection[int] = (),
        scale: float = 1.0,
    ) -> Nonzeros:
        """Of a checked tensor, in `dtype`: at least so many rows of each mode, if it has them, and
        all rows of the modes `whole`. Zeros that are stored are left out."""
        values, places = tensor.values.to(dtype) / scale, tensor.coordinates
        there = values != 0
        if not bool(there.all()):
            values, places = values[there], places[:, there]
        rows, kept = [], []
        for k, (size, along) in enumerate(zip(tensor.shape, places, strict=True)):
            own, index = (None, along) if k in whole else _occupied(along, size, least)
            rows.append(index)
            kept.append(own)
        return cls(values, torch.stack(rows), tuple(kept), tensor.shape, scale)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each mode."""
        pairs = zip(self.kept, self.shape, strict=True)
        return tuple(size if rows is None else len(rows) for rows, size in pairs)

    @cached_property
    def norm(self) -> float:
        """||X||, over `scale`."""
        return float(torch.linalg.vector_norm(self.values, dtype=torch.float64))

    def rel_error(self, square: float) -> float:
        """The relative error of a squared residual, as it can be told; absolute for zeros."""
        whole = self.norm**2
        if not whole:
            return math.sqrt(max(square, 0.0))
        return math.sqrt(max(square / whole, FLOOR))

    def sorted(self, mode: int) -> Sorted:
        """By that mode; made once."""
        if mode not in self.by_mode:
            self.by_mode[mode] = self._sort(mode)
        return self.by_mode[mode]

    def _sort(self, mode: int) -> Sorted:
        own = self.coordinates[mode]
        counts = torch.bincount(own, minlength=self.sizes[mode])
        starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        if mode == 0:
            return Sorted(self.values, self.coordinates[1:], starts)
        # Equal ones stay in their order, so that rows of the first modes are met one after another.
        order = own.argsort(stable=True)
        others = [self.coordinates[k][order] for k in range(len(self.shape)) if k != mode]
        return Sorted(self.values[order], torch.stack(others), starts)

    def mttkrp(self, columns: Sequence[Tensor], mode: int) -> Tensor:
        """(rows, c) of that mode, from columns (n_k, c) of all others."""
        return self.sorted(mode).mttkrp([u for k, u in enumerate(columns) if k != mode])

    def square_residual(self, factors: Sequence[Tensor], weights: Tensor) -> Tensor:
        """||X - M||^2 for the model of columns (n_k, r) with weights (r,), float64.

        With m the entries of M where X has x: sum (x - m)^2 + (||M||^2 - sum m^2), of which the
        second term is what M has elsewhere, from Grams. In float64 throughout; what cancels in
        that difference leaves nothing to be told below `FLOOR` ||X||^2.
        """
        wide = [u.to(torch.float64) for u in factors]
        scales = weights.to(torch.float64)
        gram = scales[:, None] * scales
        for u in wide:
            gram = gram * (u.T @ u)
        total = gram.sum()
        step = max(1, _ENTRIES // max(1, len(weights)))
        for begin in range(0, len(self.values), step):
            part = slice(begin, begin + step)
            product = wide[0].index_select(0, self.coordinates[0, part]).mul_(scales)
            for u, along in zip(wide[1:], self.coordinates[1:, part], strict=True):
                product *= u.index_select(0, along)
            entries = product.sum(1)
            off = self.values[part].to(torch.float64) - entries
            total = total + (off @ off - entries @ entries)
        return total.clamp(min=FLOOR * self.norm**2)

    def spread(self, rows: Tensor, mode: int) -> Tensor:
        """A factor (n'_k, ...) of these rows as one of all rows of the mode, zero elsewhere."""
        own = self.kept[mode]
        if own is None:
            return rows
        whole = rows.new_zeros(self.shape[mode], *rows.shape[1:])
        return whole.index_copy_(0, own, rows)

    def picked(self, factor: Tensor, mode: int) -> Tensor:
        """Of a factor of all rows of a mode, these rows."""
        own = self.kept[mode]
        return factor if own is None else factor.index_select(0, own)


def _occupied(along: Tensor, size: int, least: int) -> tuple[Tensor | None, Tensor]:
    """The rows of a mode that are named in `along` (nnz,), `least` of them if there are as many,
    and `along` in their terms; None where all are."""
    if size <= _DENSER * max(len(along), least):
        there = torch.zeros(size, dtype=torch.bool, device=along.device)
        there[along.long()] = True
        there[:least] |= int(there.sum()) < min(least, size)
        if bool(there.all()):
            return None, along
        places = there.cumsum(0).to(along.dtype) - 1
        return there.nonzero()[:, 0], places[along.long()]
    rows = torch.unique(along)
    if len(rows) < least:
        # Any others will do, such as the first ones: among so many there are enough.
        more = torch.arange(least, device=along.device, dtype=along.dtype)
        rows = torch.unique(torch.cat([rows, more]))
    return rows.long(), torch.searchsorted(rows, along, out_int32=math.log2(len(rows)) < 31)
