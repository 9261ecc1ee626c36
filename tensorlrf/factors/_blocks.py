"""Block low-rank matrices: blocks of unequal rank that tile the whole, on a grid or as a tree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors._base import Factors
from tensorlrf.factors.arrays import check_together
from tensorlrf.factors.tiling import Block, Tiling, by_rows


@dataclass(frozen=True, eq=False, repr=False)
class BlockLowRank(Factors):
    """Blocks that tile an (m, n) matrix, each of a rank of its own or dense.

    `panels()` gives the blocks one by one; `BlockLowRank.pack` is its inverse.

    Parameters
    ----------
    left : Tensor of shape (sum of rows_b r_b,)
        The left panels of all low-rank blocks one behind the other, by rows of blocks, each
        transposed, (r_b, rows_b): those of blocks that lie beside each other are one matrix.
    right : Tensor of shape (sum of r_b columns_b,)
        The right panels, each (r_b, columns_b), by columns of blocks: those of blocks that lie
        above each other are one matrix.
    dense : Tensor of shape (sum of rows_b columns_b,)
        The dense blocks, by rows of blocks.
    blocks : tuple of Block
        Where they are, by rows: ascending (row, rows, column, columns).
    dense_shape : tuple of int
        (m, n).

    Raises
    ------
    ArgumentError, ShapeError
        Where these do not fit together, or the blocks do not cover the matrix, each entry once.

    References
    ----------
    Amestoy et al. 2015; as a tree of blocks: Hackbusch 1999.

    Examples
    --------
    >>> left, right, dense = torch.ones(4, 1), torch.ones(1, 4), torch.eye(4)
    >>> f = tensorlrf.BlockLowRank.pack([(0, 0, dense), (0, 4, (left, right))], (4, 8))
    >>> f.to_dense()[0]
    tensor([1., 0., 0., 0., 1., 1., 1., 1.])
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
        """Blocks with their contents, packed.

        Parameters
        ----------
        blocks : sequence of tuple
            (first row, first column, content): a dense block (rows, columns), or a pair of left
            (rows, r) and right (r, columns).
        shape : tuple of int
            (m, n).

        Returns
        -------
        BlockLowRank

        Raises
        ------
        ArgumentError, ShapeError
            Where there are none, or where they do not tile the matrix.
        """
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
        """Each block with its content, as views.

        Yields
        ------
        tuple
            The block, and its content: dense (rows, columns), or left (rows, r) and right
            (r, columns).
        """
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


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_rank(value: object) -> bool:
    return value is None or _is_int(value)
