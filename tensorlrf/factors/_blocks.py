"""Block low-rank matrices: blocks of unequal rank that tile the whole, on a grid or as a tree."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heappop, heappush
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors._base import Factors, check_together


class Block(NamedTuple):
    """Where a block lies and what it has: its first row and column, its size, and its rank; the
    rank is None for a block that is stored as it is."""

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


@dataclass(frozen=True, eq=False, repr=False)
class BlockLowRank(Factors):
    """Blocks that tile an (m, n) matrix, each of a rank of its own or dense (Amestoy et al. 2015;
    as a tree of blocks: Hackbusch 1999).

    left         (sum of rows_b r_b,): the left panels of all low-rank blocks one behind the other,
                 by rows of blocks, each transposed, (r_b, rows_b): those of blocks that lie beside
                 each other are one matrix
    right        (sum of r_b columns_b,): the right panels, each (r_b, columns_b), by columns of
                 blocks: those of blocks that lie above each other are one matrix
    dense        (sum of rows_b columns_b,): the dense blocks, by rows of blocks
    blocks       where they are, by rows: ascending (row, rows, column, columns)
    dense_shape  (m, n)

    `panels()` gives the blocks one by one; `BlockLowRank.pack` is its inverse.
    """

    left: Tensor
    right: Tensor
    dense: Tensor
    blocks: tuple[Block, ...]
    dense_shape: tuple[int, ...]

    format: ClassVar[str] = "blr"

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", _as_blocks(self.blocks))
        object.__setattr__(self, "dense_shape", tuple(int(n) for n in self.dense_shape))
        self.check()

    @classmethod
    def pack(
        cls,
        blocks: Sequence[tuple[int, int, Tensor | tuple[Tensor, Tensor]]],
        shape: tuple[int, int],
    ) -> Self:
        """From (first row, first column, content): a dense block (rows, columns), or a pair of
        left (rows, r) and right (r, columns)."""
        if not blocks:
            raise ArgumentError("blocks=[] is empty; give the blocks that tile the matrix")
        some = blocks[0][2]
        like = some if isinstance(some, Tensor) else some[0]
        contents: dict[Block, Tensor | tuple[Tensor, Tensor]] = {}
        for row, column, content in blocks:
            if isinstance(content, Tensor):
                rows, columns = content.shape
                contents[Block(row, column, rows, columns, None)] = content
            else:
                left, right = content
                sizes = int(left.shape[0]), int(right.shape[1]), int(left.shape[1])
                contents[Block(row, column, *sizes)] = content
        tiling = Tiling(sorted(contents, key=by_rows))
        lefts = [contents[b][0].T.reshape(-1) for b in tiling.low_rank]
        rights = [contents[b][1].reshape(-1) for b in tiling.low_rank_by_columns]
        tiles = [contents[b] for b in tiling.dense]
        denses = [tile.reshape(-1) for tile in tiles if isinstance(tile, Tensor)]
        flat = [torch.cat(p) if p else like.new_zeros(0) for p in (lefts, rights, denses)]
        return cls(flat[0], flat[1], flat[2], tiling, shape)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.dense_shape

    @property
    def rank(self) -> int:
        """The largest rank of a low-rank block."""
        return max((b.rank for b in self.blocks if b.rank is not None), default=0)

    def panels(self) -> Iterator[tuple[Block, Tensor | tuple[Tensor, Tensor]]]:
        """Each block with its content: dense (rows, columns), or left (rows, r) and right
        (r, columns); views."""
        parts: dict[Block, list[Tensor]] = {b: [] for b in self.blocks}
        for name, tensor in self.tensors().items():
            blocks, sizes = self.tiling.of(name), list(self.tiling.sizes[name])
            for b, part in zip(blocks, torch.split(tensor, sizes) if sizes else (), strict=True):
                parts[b].append(part)
        for b in self.blocks:
            if b.rank is None:
                yield b, parts[b][0].reshape(b.rows, b.columns)
            else:
                left, right = parts[b]
                yield b, (left.reshape(b.rank, b.rows).T, right.reshape(b.rank, b.columns))

    @property
    def tiling(self) -> Tiling:
        """The blocks, with the orders in which their panels lie."""
        assert isinstance(self.blocks, Tiling)
        return self.blocks

    def tensors(self) -> dict[str, Tensor]:
        return {"left": self.left, "right": self.right, "dense": self.dense}

    def meta(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "blocks": [list(b) for b in self.blocks]}

    def _context(self) -> dict[str, Any]:
        return {"shape": self.shape, "blocks": self.tiling}

    @classmethod
    def _fields(cls, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **{name: tensors[name] for name in ("left", "right", "dense")},
            "blocks": _as_blocks(meta["blocks"]),
            "dense_shape": tuple(meta["shape"]),
        }

    def map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        # With the blocks as they are, not as JSON, which would be read and checked again.
        mapped = {name: fn(tensor) for name, tensor in self.tensors().items()}
        return type(self).from_tensors(mapped, self._context())

    def check(self) -> None:
        check_together(self.tensors(), "BlockLowRank")
        self.tiling.check(self.shape)
        for name, tensor in self.tensors().items():
            size = self.tiling.totals[name]
            if tuple(tensor.shape) != (size,):
                raise ShapeError(
                    f"BlockLowRank: {name} is {tuple(tensor.shape)}; the blocks need ({size},)"
                )

    def _dense(self) -> Tensor:
        # By strips of rows, if the blocks make up a grid: no writing in place, so that gradients
        # and torch.func need no copies.
        tiles = {
            b: content if isinstance(content, Tensor) else content[0] @ content[1]
            for b, content in self.panels()
        }
        strips = self.tiling.strips
        if strips is not None:
            return torch.cat([torch.cat([tiles[b] for b in strip], dim=1) for strip in strips])
        whole = self.left.new_zeros(self.shape)
        for b, tile in tiles.items():
            whole[b.row : b.row + b.rows, b.column : b.column + b.columns] = tile
        return whole


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


def _as_blocks(blocks: Any) -> Tiling:
    if isinstance(blocks, Tiling):
        return blocks
    try:
        made = Tiling(Block(*b) for b in blocks)
    except TypeError:
        made = Tiling()
    if not made or not all(all(_is_int(n) for n in b[:4]) and _is_rank(b.rank) for b in made):
        raise ArgumentError(
            f"BlockLowRank: blocks={blocks!r} must be Block(row, column, rows, columns, rank)"
        )
    if list(made) != sorted(made, key=by_rows):
        raise ArgumentError(
            "BlockLowRank: blocks are not in ascending order of (row, rows, column, columns); "
            "BlockLowRank.pack puts them so"
        )
    return made


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


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_rank(value: object) -> bool:
    return value is None or _is_int(value)


def _size(block: Block, name: str) -> int:
    """How many numbers a block has in the tensor of that name."""
    if block.rank is None:
        return block.rows * block.columns
    return block.rank * (block.rows if name == "left" else block.columns)
