"""Blocks of low rank times x: one product for each column of blocks, and one for each row of them.

"fold" pads the ranks of all columns, and of all rows, to one multiple of 16, so that each side is
one batched product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf.errors import ShapeError
from tensorlrf.factors import Block, BlockLowRank
from tensorlrf.factors.tiling import Tiling
from tensorlrf.ops._counter import Counter
from tensorlrf.ops.forms._form import Form
from tensorlrf.ops.forms.shared._block_kernel import BlockKernel
from tensorlrf.ops.forms.stages import Paths, Stage
from tensorlrf_kernels.blr_linear import blr_linear
from tensorlrf_kernels.blr_linear.forms import tiling_of

PADDED = 16

Strip = tuple[Block, ...]
Interval = tuple[int, int]
"""The first row or column, and how many."""
Pieces = dict[Block, Tensor]
"""Block -> its right panel times its part of x, (..., r_b)."""


class BLRForm(Form[BlockLowRank]):
    """Down by the right panels, a strip of columns at once, and up by the left ones, a strip of
    rows at once. What passes between is in pieces, one a block."""

    def linear(self, f: BlockLowRank) -> Paths:
        tiling = f.tiling
        tiling.check(f.shape)  # of factors that a pytree has put together it is not known
        columns, rows = columns_of(tiling), rows_of(tiling)
        right, left = panels(f.right, columns, "columns"), panels(f.left, rows, "rows")
        m, dense = f.shape[0], tiles(f.dense, tiling)
        paths: Paths = {"chain": (Down(right, columns), Up(left, dense, rows, tiling, m))}
        if is_even(tiling):
            paths["fold"] = (
                PaddedDown(even_panels(f.right, columns, "columns"), columns),
                PaddedUp(even_panels(f.left, rows, "rows"), rows, m),
            )
        kernel = BLRKernel(
            (f.left, f.right, f.dense, tiling.words, f.shape), blocks=tiling_of(tiling.words).form
        )
        return {**paths, **kernel.path()}

    def part(self, f: BlockLowRank, axis: int, parts: int, k: int) -> BlockLowRank:
        m, n = f.shape
        size = f.shape[axis] // parts
        first, own = k * size, []
        for b, content in f.panels():
            start, length = ((b.row, b.rows), (b.column, b.columns))[axis]
            if f.shape[axis] % parts or start // size != (start + length - 1) // size:
                what = ("rows", "columns")[axis]
                raise ShapeError(
                    f"the {what} {start} to {start + length - 1} of a block of {f!r} lie across "
                    f"equal parts of its {f.shape[axis]} {what} on {parts} ranks"
                )
            if first <= start < first + size:
                at = (b.row, b.column - first) if axis else (b.row - first, b.column)
                own.append((*at, content))
        return BlockLowRank.pack(own, (m, size) if axis else (size, n))

    def joined(self, parts: Sequence[BlockLowRank], axis: int) -> BlockLowRank:
        shape, own = [*parts[0].shape], []
        for k, part in enumerate(parts):
            first = k * shape[axis]
            for b, content in part.panels():
                at = (b.row, b.column + first) if axis else (b.row + first, b.column)
                own.append((*at, content))
        shape[axis] *= len(parts)
        return BlockLowRank.pack(own, (shape[0], shape[1]))

    def count_dense(self, f: BlockLowRank, counter: Counter) -> bool:
        # A tree of blocks is written in place, which leaves no record.
        for b in f.tiling.low_rank:
            counter.matmul(b.rows, b.rank or 0, b.columns)
        return True


class BLRKernel(BlockKernel):
    """All blocks, the dense ones too."""

    op = blr_linear


# ---- strips of blocks ---------------------------------------------------------------------------


def is_even(tiling: Tiling) -> bool:
    """A grid of low-rank blocks of one size."""
    sizes = {(b.rows, b.columns) for b in tiling}
    if len(sizes) != 1 or tiling.dense:
        return False
    ((rows, columns),) = sizes
    return all(b.row % rows == 0 and b.column % columns == 0 for b in tiling)


def columns_of(tiling: Tiling) -> tuple[Strip, ...]:
    """Low-rank blocks that lie above each other, as their right panels do."""
    return _strips(tiling.low_rank_by_columns, lambda b: (b.column, b.columns))


def rows_of(tiling: Tiling) -> tuple[Strip, ...]:
    """Low-rank blocks that lie beside each other, as their left panels do."""
    return _strips(tiling.low_rank, lambda b: (b.row, b.rows))


def _strips(blocks: Iterable[Block], interval: Callable[[Block], Interval]) -> tuple[Strip, ...]:
    """The blocks of each interval of columns or rows."""
    found: dict[Interval, list[Block]] = {}
    for b in blocks:
        found.setdefault(interval(b), []).append(b)
    return tuple(map(tuple, found.values()))


def ranks_of(strip: Iterable[Block]) -> list[int]:
    return [b.rank or 0 for b in strip]


def panels(tensor: Tensor, strips: tuple[Strip, ...], side: str) -> tuple[Tensor | None, ...]:
    """Of each strip the panels as one matrix, (sum of its ranks, width), where its blocks are as
    wide as they have "rows" or "columns"; None for a strip without rank."""
    found: list[Tensor | None] = []
    start = 0
    for strip in strips:
        width: int = getattr(strip[0], side)
        size = sum(ranks_of(strip)) * width
        found.append(tensor[start : start + size].reshape(-1, width) if size else None)
        start += size
    return tuple(found)


def tiles(tensor: Tensor, tiling: Tiling) -> tuple[Tensor, ...]:
    """The dense blocks, (rows, columns) each."""
    found = []
    start = 0
    for b in tiling.dense:
        size = b.rows * b.columns
        found.append(tensor[start : start + size].reshape(b.rows, b.columns))
        start += size
    return tuple(found)


# ---- chain --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Down(Stage):
    """x to pieces: each strip of columns times its right panels, taken apart by blocks."""

    panels: tuple[Tensor | None, ...]
    strips: tuple[Strip, ...]

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        pieces: Pieces = {}
        for panel, strip in zip(self.panels, self.strips, strict=True):
            if panel is None:
                continue
            start = strip[0].column
            t = F.linear(x[..., start : start + strip[0].columns], panel)
            parts = torch.split(t, ranks_of(strip), -1)
            # Not iterated over, so that it can be traced.
            pieces.update((b, parts[k]) for k, b in enumerate(strip))
        return pieces  # type: ignore[return-value]

    def count(self, counter: Counter) -> None:
        for panel in self.panels:
            if panel is not None:
                counter.matmul(counter.rows, panel.shape[1], panel.shape[0])


@dataclass(frozen=True, eq=False)
class Up(Stage):
    """Pieces to y: those of each strip of rows times its left panels, and the dense blocks times
    x."""

    panels: tuple[Tensor | None, ...]
    tiles: tuple[Tensor, ...]
    strips: tuple[Strip, ...]
    tiling: Tiling
    m: int

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        pieces: Pieces = x  # type: ignore[assignment]
        ends: dict[Interval, list[Tensor]] = {}
        for panel, strip in zip(self.panels, self.strips, strict=True):
            if panel is not None:
                t = torch.cat([pieces[b] for b in strip if b.rank], -1)
                ends.setdefault((strip[0].row, strip[0].rows), []).append(torch.matmul(t, panel))
        for tile, b in zip(self.tiles, self.tiling.dense, strict=True):
            y = F.linear(first[..., b.column : b.column + b.columns], tile)
            ends.setdefault((b.row, b.rows), []).append(y)
        return put_together(ends, self.m) if ends else zeros(first, self.m)

    def count(self, counter: Counter) -> None:
        rows = counter.rows
        for panel, strip in zip(self.panels, self.strips, strict=True):
            if panel is not None:
                if len(strip) > 1:
                    counter.merge(rows * panel.shape[0])
                counter.matmul(rows, *panel.shape)
        for tile in self.tiles:
            counter.matmul(rows, tile.shape[1], tile.shape[0])
        counter.merge(rows * self.m)


def put_together(ends: dict[Interval, list[Tensor]], m: int) -> Tensor:
    """The sum of what belongs to intervals of rows, by (first row, how many): intervals that do not
    overlap are put one behind the other, gaps between them are zeros."""
    waiting = sorted(ends)
    whole: Tensor | None = None
    while waiting:
        end, layer, rest = 0, [], []
        for row, rows in waiting:
            if row < end:
                rest.append((row, rows))
                continue
            y, *others = ends[row, rows]
            for other in others:
                y = y + other
            layer.append(F.pad(y, (row - end, 0)) if row > end else y)
            end = row + rows
        if end < m:
            layer[-1] = F.pad(layer[-1], (0, m - end))
        strip = torch.cat(layer, -1) if len(layer) > 1 else layer[0]
        whole = strip if whole is None else whole + strip
        waiting = rest
    assert whole is not None
    return whole


def zeros(x: Tensor, m: int) -> Tensor:
    """(..., m) for x (..., n), of blocks that are all without rank."""
    return x[..., :1] * x.new_zeros(m)


# ---- fold ---------------------------------------------------------------------------------------


def padded(strips: Iterable[Strip]) -> int:
    """The ranks of the strip that has most of them, up to a multiple."""
    most = max(sum(ranks_of(strip)) for strip in strips)
    return -(-most // PADDED) * PADDED


def even_panels(tensor: Tensor, strips: tuple[Strip, ...], side: str) -> tuple[Tensor, ...]:
    """`panels` of strips that all have one width."""
    width: int = getattr(strips[0][0], side)
    parts = torch.split(tensor.reshape(-1, width), [sum(ranks_of(strip)) for strip in strips])
    return tuple([parts[k] for k in range(len(strips))])  # not iterated over, as above


def stacked(panels: tuple[Tensor, ...], ranks: int) -> Tensor:
    """The panels of all strips, each with zeros up to so many ranks: (strips, ranks, width)."""
    return torch.stack([F.pad(p, (0, 0, 0, ranks - p.shape[0])) for p in panels])


@dataclass(frozen=True, eq=False)
class PaddedDown(Stage):
    """`Down` as one batched product."""

    panels: tuple[Tensor, ...]
    strips: tuple[Strip, ...]

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        strips, ranks = self.strips, padded(self.strips)
        if not ranks:
            return {}  # type: ignore[return-value]
        right = stacked(self.panels, ranks)  # (q, R, nb)
        x = torch.unflatten(x, -1, (len(strips), strips[0][0].columns))
        t = torch.einsum("...qn,qrn->...qr", x, right)
        pieces: Pieces = {}
        for k, strip in enumerate(strips):
            own = ranks_of(strip)
            parts = torch.split(t[..., k, :], [*own, ranks - sum(own)], -1)
            pieces.update((b, parts[i]) for i, b in enumerate(strip))
        return pieces  # type: ignore[return-value]

    def count(self, counter: Counter) -> None:
        strips, ranks = self.strips, padded(self.strips)
        if ranks:
            width = strips[0][0].columns
            counter.merge(len(strips) * ranks * width)
            counter.products(len(strips), counter.rows, width, ranks)


@dataclass(frozen=True, eq=False)
class PaddedUp(Stage):
    """`Up` as one batched product."""

    panels: tuple[Tensor, ...]
    strips: tuple[Strip, ...]
    m: int

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        pieces: Pieces = x  # type: ignore[assignment]
        ranks = padded(self.strips)
        if not ranks:
            return zeros(first, self.m)
        left = stacked(self.panels, ranks)  # (p, R, mb)
        strips = []
        for strip in self.strips:
            t = torch.cat([pieces[b] for b in strip], -1)
            strips.append(F.pad(t, (0, ranks - sum(ranks_of(strip)))))
        t = torch.stack(strips, -2)  # (..., p, R)
        return torch.einsum("...pr,prm->...pm", t, left).flatten(-2)

    def count(self, counter: Counter) -> None:
        strips, ranks = self.strips, padded(self.strips)
        if ranks:
            width = strips[0][0].rows
            counter.merge(len(strips) * ranks * width)
            counter.merge(counter.rows * len(strips) * ranks)
            counter.products(len(strips), counter.rows, ranks, width)
