"""Block low-rank matrices: blocks of unequal rank that tile the whole, on a grid or as a tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
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
            blocks = self.tiling.of(name)
            sizes = [_size(b, name) for b in blocks]
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

    def check(self) -> None:
        check_together(self.tensors(), "BlockLowRank")
        check_tiling(self.blocks, self.shape)
        for name, tensor in self.tensors().items():
            size = sum(_size(b, name) for b in self.tiling.of(name))
            if tuple(tensor.shape) != (size,):
                raise ShapeError(
                    f"BlockLowRank: {name} is {tuple(tensor.shape)}; the blocks need ({size},)"
                )

    def to_dense(self) -> Tensor:
        # By strips of rows, if the blocks make up a grid: no writing in place, so that gradients
        # and torch.func need no copies.
        starts = sorted({b.row for b in self.blocks})
        tiles: dict[tuple[int, int], Tensor] = {}
        for b, content in self.panels():
            tile = content if isinstance(content, Tensor) else content[0] @ content[1]
            tiles[b.row, b.column] = tile
        if all(_spans_one_strip(b, starts) for b in self.blocks):
            strips = []
            for start in starts:
                row = sorted(column for r, column in tiles if r == start)
                strips.append(torch.cat([tiles[start, column] for column in row], dim=1))
            return torch.cat(strips)
        whole = self.left.new_zeros(self.shape)
        for b in self.blocks:
            rows, columns = slice(b.row, b.row + b.rows), slice(b.column, b.column + b.columns)
            whole[rows, columns] = tiles[b.row, b.column]
        return whole


class Tiling(tuple[Block, ...]):
    """Blocks by rows, and what follows from where they are, found once."""

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
        return Tiling, (tuple(self),)


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
    """The blocks cover an (m, n) matrix, each entry once."""
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
    # Equal areas and no overlap are a tiling. Overlaps by a sweep over the rows at which blocks
    # begin or end: there the intervals of columns must fill the width.
    if sum(b.rows * b.columns for b in blocks) != m * n:
        raise ShapeError(
            f"BlockLowRank: the blocks do not cover the {m} x {n} matrix, each entry once"
        )
    for row in sorted({b.row for b in blocks}):
        across = sorted((b.column, b.columns) for b in blocks if b.row <= row < b.row + b.rows)
        ends = list(accumulate((width for _, width in across), initial=0))
        if [column for column, _ in across] != ends[:-1] or ends[-1] != n:
            raise ShapeError(f"BlockLowRank: the blocks at row {row} overlap or leave a gap")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_rank(value: object) -> bool:
    return value is None or _is_int(value)


def _size(block: Block, name: str) -> int:
    """How many numbers a block has in the tensor of that name."""
    if block.rank is None:
        return block.rows * block.columns
    return block.rank * (block.rows if name == "left" else block.columns)


def _spans_one_strip(block: Block, starts: Sequence[int]) -> bool:
    return not any(block.row < start < block.row + block.rows for start in starts)
