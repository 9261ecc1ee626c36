from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import Block, BlockLowRank, Factors
from tests.factors.test_tt import cores
from tests.laws.factors import FactorLaws

GRID = (Block(0, 0, 4, 3, 2), Block(0, 3, 4, 5, 1), Block(4, 0, 2, 3, 0), Block(4, 3, 2, 5, 2))
TREE = (
    Block(0, 0, 2, 2, None), Block(0, 2, 2, 2, 1), Block(0, 4, 4, 4, 2),
    Block(2, 0, 2, 2, 1), Block(2, 2, 2, 2, None),
    Block(4, 0, 4, 4, 1), Block(4, 4, 4, 4, 3),
)  # fmt: skip


def pieces(blocks: tuple[Block, ...], shape: tuple[int, int], seed: int) -> BlockLowRank:
    contents: list[tuple[int, int, Tensor | tuple[Tensor, Tensor]]] = []
    for k, b in enumerate(blocks):
        if b.rank is None:
            (dense,) = cores([(b.rows, b.columns)], 100 * seed + k, torch.float64)
            contents.append((b.row, b.column, dense))
        else:
            sizes: list[tuple[int, ...]] = [(b.rows, b.rank), (b.rank, b.columns)]
            left, right = cores(sizes, 100 * seed + k, torch.float64)
            contents.append((b.row, b.column, (left, right)))
    return BlockLowRank.pack(contents, shape)


def written_out(factors: Factors) -> Tensor:
    assert isinstance(factors, BlockLowRank)
    whole = torch.zeros(factors.shape, dtype=factors.dtype)
    for b, content in factors.panels():
        tile = content if isinstance(content, Tensor) else torch.einsum("ir,rj->ij", *content)
        whole[b.row : b.row + b.rows, b.column : b.column + b.columns] += tile
    return whole


class TestGrid(FactorLaws):
    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> BlockLowRank:
        return pieces(GRID, (6, 8), seed).to(dtype)

    def dense_by_definition(self, factors: Factors) -> Tensor:
        return written_out(factors)

    def test_multilinear_in_each_tensor(self) -> None:
        """In the panels; there is no dense block."""
        f, g = self.sample(0), self.sample(1)
        for name in ("left", "right"):
            mixed = {**f.tensors(), name: 2 * f.tensors()[name] + g.tensors()[name]}
            swapped = {**f.tensors(), name: g.tensors()[name]}
            expected = 2 * f.to_dense() + BlockLowRank.from_tensors(swapped, f.meta()).to_dense()
            torch.testing.assert_close(
                BlockLowRank.from_tensors(mixed, f.meta()).to_dense(), expected
            )

    def test_refuses_sizes_that_do_not_fit(self) -> None:
        f = self.sample()
        for name, t in f.tensors().items():
            with pytest.raises(ShapeError, match=name):
                BlockLowRank.from_tensors(
                    {**f.tensors(), name: torch.cat([t, t[:1], t.new_zeros(1)])}, f.meta()
                )


class TestTree(TestGrid):
    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> BlockLowRank:
        return pieces(TREE, (8, 8), seed).to(dtype)

    def test_multilinear_in_each_tensor(self) -> None:
        """Low-rank blocks scale with either panel, dense ones with themselves: together the whole
        is additive in the dense blocks and the left panels."""
        f, g = self.sample(0), self.sample(1)
        scaled = {**f.tensors()}
        for name in ("left", "dense"):
            scaled[name] = 2 * f.tensors()[name] + g.tensors()[name]
        swapped = {**g.tensors(), "right": f.right}
        expected = 2 * f.to_dense() + BlockLowRank.from_tensors(swapped, f.meta()).to_dense()
        torch.testing.assert_close(BlockLowRank.from_tensors(scaled, f.meta()).to_dense(), expected)


def test_packing_and_unpacking_agree() -> None:
    f = pieces(TREE, (8, 8), 0)
    contents = [(b.row, b.column, content) for b, content in f.panels()]
    again = BlockLowRank.pack(contents[::-1], (8, 8))
    assert again.blocks == f.blocks == TREE
    for name, tensor in f.tensors().items():
        assert torch.equal(again.tensors()[name], tensor)
    assert f.n_params == sum(b.n_params for b in TREE)
    assert f.rank == 3
    with pytest.raises(ArgumentError, match="blocks"):
        BlockLowRank.pack([], (8, 8))


@pytest.mark.parametrize(
    "blocks",
    [
        GRID[:3],  # a gap
        (*GRID[:3], Block(4, 2, 2, 5, 2)),  # an overlap, and as large as before
        (*GRID[:3], Block(4, 3, 2, 5, 3)),  # a rank above both sides
        (*GRID[:3], Block(4, 3, 3, 5, 2)),  # beyond the edge
        (Block(-4, 3, 2, 5, 2), *GRID[:3]),
    ],
)
def test_refuses_blocks_that_do_not_tile(blocks: tuple[Block, ...]) -> None:
    f = pieces(GRID, (6, 8), 0)
    with pytest.raises(ShapeError, match=r"cover|overlap|rank|lie within"):
        BlockLowRank(f.left, f.right, f.dense, blocks, (6, 8))


@pytest.mark.parametrize(
    "blocks",
    [3, [], [(0, 0, 6, 8)], [(0, 0, 6, 8, "2")], [(0, 0.5, 6, 8, 2)], [None], [*GRID[1:], GRID[0]]],
)
def test_refuses_what_are_no_blocks(blocks: object) -> None:
    f = pieces(GRID, (6, 8), 0)
    with pytest.raises(ArgumentError, match="blocks"):
        BlockLowRank.from_tensors(f.tensors(), {"shape": [6, 8], "blocks": blocks})
