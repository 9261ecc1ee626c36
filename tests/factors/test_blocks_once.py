"""What follows from where blocks are is found once, and blocks that overlap are always found."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorlrf.errors import ShapeError
from tensorlrf.factors import Block, BlockLowRank, tiling
from tests.factors.test_blocks import GRID, TREE, pieces


@pytest.mark.parametrize(("blocks", "shape"), [(GRID, (6, 8)), (TREE, (8, 8))])
def test_blocks_are_checked_once(
    blocks: tuple[Block, ...], shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []
    check = tiling.check_tiling

    def counted(blocks: Sequence[Block], shape: Sequence[int]) -> None:
        checked.append(len(blocks))
        check(blocks, shape)

    monkeypatch.setattr(tiling, "check_tiling", counted)
    f = pieces(blocks, shape, 0)
    assert len(checked) == 1
    for g in (f.to(torch.float32), f.detach(), f.map(lambda t: 2 * t), f.to("meta")):
        assert g.tiling is f.tiling
        assert g.to_dense().shape == shape
    for same in (copy.deepcopy(f), pickle.loads(pickle.dumps(f))):
        assert same.detach().blocks == f.blocks
    assert len(checked) == 1
    with pytest.raises(ShapeError, match="need"):
        f.map(lambda t: torch.cat([t, t]))
    # Of another matrix they are checked again.
    with pytest.raises(ShapeError, match="cover"):
        BlockLowRank(f.left, f.right, f.dense, f.blocks, (shape[0] + 1, shape[1]))


def test_a_copy_can_be_compiled() -> None:
    """torch.compile cannot trace what finds the strips."""
    for blocks, shape in ((GRID, (6, 8)), (TREE, (8, 8))):
        f = pickle.loads(pickle.dumps(pieces(blocks, shape, 0)))

        def whole(left: torch.Tensor, right: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
            named = {"left": left, "right": right, "dense": dense}
            return BlockLowRank._assemble(named, f._context()).to_dense()  # noqa: B023

        compiled = torch.compile(whole, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(*f.tensors().values()), f.to_dense())


@st.composite
def tilings(draw: st.DrawFn) -> tuple[list[Block], tuple[int, int]]:
    """A matrix cut at random, again and again."""
    m, n = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    blocks = [(0, 0, m, n)]
    for _ in range(draw(st.integers(0, 8))):
        row, column, rows, columns = blocks.pop(draw(st.integers(0, len(blocks) - 1)))
        if draw(st.booleans()):
            cut = draw(st.integers(1, rows))
            parts = [(row, column, cut, columns), (row + cut, column, rows - cut, columns)]
        else:
            cut = draw(st.integers(1, columns))
            parts = [(row, column, rows, cut), (row, column + cut, rows, columns - cut)]
        blocks += [part for part in parts if min(part[2:]) > 0]
    return sorted((Block(*b, 0) for b in blocks), key=tiling.by_rows), (m, n)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(made=tilings(), moved=st.integers(0, 8), by=st.tuples(*(st.integers(-2, 2),) * 4))
def test_a_tiling_is_what_covers_each_entry_once(
    made: tuple[list[Block], tuple[int, int]], moved: int, by: tuple[int, ...]
) -> None:
    blocks, shape = made
    tiling.check_tiling(blocks, shape)
    one = blocks.pop(moved % len(blocks))
    blocks.append(Block(*(k + d for k, d in zip(one[:4], by, strict=True)), 0))
    blocks.sort(key=tiling.by_rows)
    counts = torch.zeros(shape)
    inside = True
    for b in blocks:
        rows, columns = range(b.row, b.row + b.rows), range(b.column, b.column + b.columns)
        inside &= b.row >= 0 and b.column >= 0 and b.rows > 0 and b.columns > 0
        inside &= rows.stop <= shape[0] and columns.stop <= shape[1]
        if inside:
            counts[rows.start : rows.stop, columns.start : columns.stop] += 1
    if inside and bool((counts == 1).all()):
        tiling.check_tiling(blocks, shape)
    else:
        with pytest.raises(ShapeError):
            tiling.check_tiling(blocks, shape)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(made=tilings(), seed=st.integers(0, 9))
def test_any_tiling_is_put_together(made: tuple[list[Block], tuple[int, int]], seed: int) -> None:
    """Whether its blocks lie in strips of rows or not."""
    blocks, shape = made
    whole = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    places = [(slice(b.row, b.row + b.rows), slice(b.column, b.column + b.columns)) for b in blocks]
    contents = [(b.row, b.column, whole[at]) for b, at in zip(blocks, places, strict=True)]
    factors = BlockLowRank.pack(contents, shape)
    assert torch.equal(factors.to_dense(), whole)
    strips = factors.tiling.strips
    apart = all(not b.row < other.row < b.row + b.rows for b in blocks for other in blocks)
    assert (strips is not None) == apart
    assert strips is None or [b for strip in strips for b in strip] == list(factors.blocks)
