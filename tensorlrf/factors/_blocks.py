"""Block low-rank matrices: blocks of unequal rank that tile the whole, on a grid or as a tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
                 each transposed, (r_b, rows_b), so that blocks with equally many rows are one
                 matrix
    right        (sum of r_b columns_b,): the right panels, each (r_b, columns_b)
    dense        (sum of rows_b columns_b,): the dense blocks
    blocks       where they are, in the order of the panels
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
        left, right, dense, where = [], [], [], []
        for row, column, content in blocks:
            if isinstance(content, Tensor):
                rows, columns = content.shape
                where.append(Block(row, column, rows, columns, None))
                dense.append(content.reshape(-1))
            else:
                one, other = content
                rank = int(one.shape[1])
                where.append(Block(row, column, int(one.shape[0]), int(other.shape[1]), rank))
                left.append(one.T.reshape(-1))
                right.append(other.reshape(-1))
        flat = [torch.cat(parts) if parts else like.new_zeros(0) for parts in (left, right, dense)]
        return cls(flat[0], flat[1], flat[2], tuple(where), shape)

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
        lefts, rights, denses = (self._parts(name) for name in ("left", "right", "dense"))
        for b in self.blocks:
            if b.rank is None:
                yield b, next(denses).reshape(b.rows, b.columns)
            else:
                left = next(lefts).reshape(b.rank, b.rows).T
                yield b, (left, next(rights).reshape(b.rank, b.columns))

    def _parts(self, name: str) -> Iterator[Tensor]:
        sizes = _sizes(self.blocks, name)
        return iter(getattr(self, name).split(sizes)) if sizes else iter(())

    def tensors(self) -> dict[str, Tensor]:
        return {"left": self.left, "right": self.right, "dense": self.dense}

    def meta(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "blocks": [list(b) for b in self.blocks]}

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
            size = sum(_sizes(self.blocks, name))
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


def _as_blocks(blocks: Any) -> tuple[Block, ...]:
    try:
        made = tuple(Block(*b) for b in blocks)
    except TypeError:
        made = ()
    if not made or not all(all(_is_int(n) for n in b[:4]) and _is_rank(b.rank) for b in made):
        raise ArgumentError(
            f"BlockLowRank: blocks={blocks!r} must be Block(row, column, rows, columns, rank)"
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


def _sizes(blocks: Sequence[Block], name: str) -> list[int]:
    """Numbers that each block has in one of the tensors; blocks that have none are left out."""
    if name == "dense":
        return [b.rows * b.columns for b in blocks if b.rank is None]
    if name == "left":
        return [b.rows * b.rank for b in blocks if b.rank is not None]
    return [b.columns * b.rank for b in blocks if b.rank is not None]


def _spans_one_strip(block: Block, starts: Sequence[int]) -> bool:
    return not any(block.row < start < block.row + block.rows for start in starts)
