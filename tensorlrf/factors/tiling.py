"""Blocks of unequal size that tile a matrix, and what follows from where they lie."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from heapq import heappop, heappush
from typing import Any, NamedTuple

from tensorlrf.errors import ShapeError


class Block(NamedTuple):
    """Where a block lies and what it has.

    Parameters
    ----------
    row, column : int
        Its first row and column.
    rows, columns : int
        Its size.
    rank : int or None
        Its rank; None for a block that is stored as it is.

    Examples
    --------
    >>> tensorlrf.factors.Block(0, 64, 64, 32, rank=4).n_params
    384
    """

    row: int
    column: int
    rows: int
    columns: int
    rank: int | None

    @property
    def n_params(self) -> int:
        """How many numbers it is stored with."""
        if self.rank is None:
            return self.rows * self.columns
        return self.rank * (self.rows + self.columns)


class Tiling(tuple[Block, ...]):
    """Blocks by rows, and what follows from where they are, found once."""

    _tiled: tuple[int, ...] | None = None

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise a ShapeError unless the blocks cover a matrix of this shape, each entry once."""
        if self._tiled == shape:
            return
        check_tiling(self, shape)
        self._tiled = shape
        # All that is cached is found here: torch.compile cannot trace what caches it.
        _ = self.strips, self.totals, self.words

    @cached_property
    def strips(self) -> tuple[tuple[Block, ...], ...] | None:
        """The blocks of each strip of rows, by columns; None where one reaches into another strip.

        Of blocks that tile a matrix.
        """
        strips: dict[int, list[Block]] = {}
        for b in self:
            strips.setdefault(b.row, []).append(b)
        # Blocks that begin together and end before the next ones begin have the same rows, and so
        # are listed by columns.
        for strip, below in zip(strips.values(), list(strips)[1:], strict=False):
            if any(b.row + b.rows > below for b in strip):
                return None
        return tuple(tuple(strip) for strip in strips.values())

    @cached_property
    def words(self) -> str:
        """As one line, of blocks that were checked: the sizes of the matrix, then of every block
        row,column,rows,columns,rank, the rank -1 where it is dense."""
        size = " ".join(map(str, self._tiled or ()))
        each = [[-1 if n is None else n for n in b] for b in self]
        return f"{size} {';'.join(','.join(map(str, b)) for b in each)}"

    @cached_property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """How many numbers each block has in each tensor, in its order."""
        names = ("left", "right", "dense")
        return {name: tuple(_size(b, name) for b in self.of(name)) for name in names}

    @cached_property
    def totals(self) -> dict[str, int]:
        """How many numbers each tensor has."""
        return {name: sum(sizes) for name, sizes in self.sizes.items()}

    @cached_property
    def low_rank(self) -> tuple[Block, ...]:
        """Those of low rank, by rows, as their left panels lie."""
        return tuple(b for b in self if b.rank is not None)

    @cached_property
    def low_rank_by_columns(self) -> tuple[Block, ...]:
        """Those of low rank as their right panels lie."""
        return tuple(sorted(self.low_rank, key=lambda b: (b.column, b.columns, b.row, b.rows)))

    @cached_property
    def dense(self) -> tuple[Block, ...]:
        """Those that are stored as they are, by rows."""
        return tuple(b for b in self if b.rank is None)

    def of(self, name: str) -> tuple[Block, ...]:
        """The blocks that have a part of the tensor of that name, in its order."""
        if name == "right":
            return self.low_rank_by_columns
        return self.low_rank if name == "left" else self.dense

    def __reduce__(self) -> tuple[Any, ...]:
        # With what was found, so that a copy need not be checked again to be compiled.
        return Tiling, (tuple(self),), dict(self.__dict__)


def by_rows(block: Block) -> tuple[int, int, int, int]:
    """The order in which blocks are listed."""
    return block.row, block.rows, block.column, block.columns


def check_tiling(blocks: Sequence[Block], shape: Sequence[int]) -> None:
    """The blocks, which are given by rows, cover an (m, n) matrix, each entry once."""
    if len(shape) != 2 or min(shape) < 1:
        raise ShapeError(f"BlockLowRank: shape={tuple(shape)} must be (m, n)")
    m, n = shape
    for b in blocks:
        inside = b.row >= 0 and b.column >= 0 and b.row + b.rows <= m and b.column + b.columns <= n
        if b.rows < 1 or b.columns < 1 or not inside:
            raise ShapeError(f"BlockLowRank: {b} does not lie within a matrix {m} x {n}")
        if b.rank is not None and not 0 <= b.rank <= min(b.rows, b.columns):
            raise ShapeError(
                f"BlockLowRank: {b} has a rank outside of 0 to {min(b.rows, b.columns)}"
            )
    # Equal areas and no overlap are a tiling.
    if sum(b.rows * b.columns for b in blocks) != m * n:
        raise ShapeError(
            f"BlockLowRank: the blocks do not cover the {m} x {n} matrix, each entry once"
        )
    overlapping = _overlapping(blocks)
    if overlapping is not None:
        raise ShapeError(f"BlockLowRank: {overlapping} overlaps another block")


def _overlapping(blocks: Sequence[Block]) -> Block | None:
    """The first block, by rows, that shares entries with one before it.

    A sweep down the rows, with the intervals of columns that are taken at each in order: a block
    is compared with its two neighbours only.
    """
    starts: list[int] = []
    ends: list[int] = []
    leaving: list[tuple[int, int]] = []  # row below the block, column
    for b in blocks:
        while leaving and leaving[0][0] <= b.row:
            gone = bisect_left(starts, heappop(leaving)[1])
            del starts[gone], ends[gone]
        end, at = b.column + b.columns, bisect_left(starts, b.column)
        if (at > 0 and ends[at - 1] > b.column) or (at < len(starts) and starts[at] < end):
            return b
        starts.insert(at, b.column)
        ends.insert(at, end)
        heappush(leaving, (b.row + b.rows, b.column))
    return None


def _size(block: Block, name: str) -> int:
    """How many numbers a block has in the tensor of that name."""
    if block.rank is None:
        return block.rows * block.columns
    return block.rank * (block.rows if name == "left" else block.columns)
