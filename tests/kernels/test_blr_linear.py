"""blr_linear, monarch_linear and blast_linear against dense matrices, and as an op of torch's
dispatcher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tensorlrf_kernels.blr_linear import (
    blast_linear,
    blr_linear,
    fused,
    launch,
    monarch_linear,
    words,
)
from tensorlrf_kernels.blr_linear.forms import tiling_of
from tensorlrf_kernels.chips import H200, KNOWN
from tensorlrf_kernels.launches import Problem
from tests.kernels.drawn.blr import (
    BlockOperands,
    Blocks,
    draw_blast,
    draw_monarch,
    draw_tiling,
    exact,
    grid,
    tree,
)
from tests.laws.kernels import KernelLaws

RAGGED = grid([3, 4, 2], [5, 2, 3], lambda i, j: None if i == j == 1 else (i * 2 + j) % 4)
FORMS: dict[str, Callable[[int], BlockOperands]] = {
    "even": lambda M: draw_tiling(M, grid([4, 4], [3, 3, 3], lambda i, j: 2), (8, 9)),
    "ragged": lambda M: draw_tiling(M, RAGGED, (9, 10)),
    "tree": lambda M: draw_tiling(M, tree(11, 9, 2, 2), (11, 9)),
    "dense": lambda M: draw_tiling(M, [(0, 0, 4, 5, None)], (4, 5)),
    "nothing": lambda M: draw_tiling(M, [(0, 0, 4, 5, 0)], (4, 5)),
    "monarch": lambda M: draw_monarch(M, (3, 4), 2, (8, 13)),
    "blast": lambda M: draw_blast(M, (3, 4), 3, (8, 13)),
}


def leaves(o: BlockOperands) -> list[Tensor]:
    return [t.requires_grad_() for t in o.tensors if t is not None]


def call_with(o: BlockOperands, tensors: list[Tensor], activation: str | None) -> Tensor:
    given = iter(tensors)
    return o.map(lambda _: next(given)).run(activation)


@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("form", FORMS)
def test_follows_the_dense_matrix(form: str, activation: str | None) -> None:
    o = FORMS[form](6)
    expected = exact(o, activation)
    for y in (o.run(activation), o.chain(activation)):
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    o.x = o.x.view(2, 3, -1)
    torch.testing.assert_close(o.run(activation), expected.view(2, 3, -1), rtol=1e-12, atol=1e-12)
    o.x = o.x[:0]
    assert o.run(activation).shape == (0, 3, expected.shape[1])


BLOCKS: Blocks = grid([4, 4], [3, 3], lambda i, j: 2)
X, LEFT, RIGHT, DENSE = torch.ones(5, 6), torch.ones(32), torch.ones(24), torch.ones(0)
M_LEFT, M_RIGHT = torch.ones(2, 4, 3, 1), torch.ones(3, 2, 1, 2)


class BlockLaws(KernelLaws):
    """Of one form, on rows of x."""

    leads = ((3,), (0,))
    compiled = ((5,), (9,), (2,))
    activations = (None, "gelu")
    form: str
    drawn_last: BlockOperands

    def drawn_rows(self, *lead: int) -> BlockOperands:
        return FORMS[self.form](*lead)

    def leaves(self, *lead: int) -> list[Tensor]:
        self.drawn_last = self.drawn_rows(*lead)
        return [t for t in self.drawn_last.tensors if t is not None]

    def filled(self, operands: tuple[Tensor, ...]) -> BlockOperands:
        given = iter(operands)
        return self.drawn_last.map(lambda _: next(given))

    def run(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        return self.filled(operands).run(activation)

    def chain(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        return self.filled(operands).chain(activation)

    def exact(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        return exact(self.filled(operands), activation)

    def calls(self) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        o = self.drawn_rows(3).map(lambda t: t.requires_grad_())
        yield torch.ops.tensorlrf.blr_linear, (*o.tensors, o.text, "gelu")
        o = o.map(lambda t: t.detach())
        dy, x, panels = o.run(), o.x, o.tensors[1:]
        for needed in ([True] * 5, [False, True, False, False, True]):
            there = [n and t is not None for n, t in zip(needed, o.tensors, strict=True)]
            args = (dy, x, *panels, o.text, "silu", there, x.shape[1])
            yield torch.ops.tensorlrf.blr_linear_backward, args


class TestRagged(BlockLaws):
    form = "ragged"

    def wrong(self) -> Iterator[tuple[Callable[[], object], str]]:
        for args, said in (
            ((X, torch.ones(31), RIGHT, DENSE, BLOCKS, (8, 6)), r"left has shape \(31,\).*\(32,\)"),
            ((X, LEFT, RIGHT, torch.ones(2), BLOCKS, (8, 6)), r"dense has shape \(2,\).*\(0,\)"),
            ((X, LEFT, RIGHT.double(), DENSE, BLOCKS, (8, 6)), "right has dtype torch.float64"),
            ((X[:, :5], LEFT, RIGHT, DENSE, BLOCKS, (8, 6)), r"x has shape \(5, 5\).*, 6\)"),
            ((X, LEFT, RIGHT, DENSE, BLOCKS, (8, 7)), "blocks do not cover"),
            ((X, LEFT, RIGHT, DENSE, BLOCKS[:3], (8, 6)), "blocks do not cover"),
            ((X, LEFT, RIGHT, DENSE, [*BLOCKS[:3], BLOCKS[2]], (8, 6)), "blocks do not cover"),
            ((X, LEFT, RIGHT, DENSE, BLOCKS[::-1], (8, 6)), "ascending order"),
            ((X, LEFT, RIGHT, DENSE, [(0, 0, 8, 6, 7)], (8, 6)), "rank outside of 0 to 6"),
            ((X, LEFT, RIGHT, DENSE, [(0, 0, 9, 6, 2)], (8, 6)), "does not lie within"),
            ((X, LEFT, RIGHT, DENSE, "nonsense", (8, 6)), "'nonsense' is no tiling"),
            ((X, LEFT, RIGHT, DENSE, BLOCKS, (8, 6), torch.ones(7)), r"bias has shape \(7,\)"),
            ((X, LEFT, RIGHT, DENSE, BLOCKS, (8, 6), None, "tanh"), "'tanh'.*relu, gelu"),
        ):
            yield partial(blr_linear, *args), said  # type: ignore[arg-type]  # wrong on purpose


class TestMonarch(BlockLaws):
    form = "monarch"

    def wrong(self) -> Iterator[tuple[Callable[[], object], str]]:
        for args, said in (
            ((X, M_LEFT, M_RIGHT, (9, 6)), r"left has shape \(2, 4, 3, 1\).*dimension 1 to be 5"),
            ((X, M_LEFT, M_RIGHT, (8, 7)), r"right has shape \(3, 2, 1, 2\).*dimension 3 to be 3"),
            ((X, M_LEFT, M_RIGHT.transpose(0, 1), (8, 6)), "right has shape .* with k = 3 as left"),
        ):
            yield partial(monarch_linear, *args), said


class TestBlast(BlockLaws):
    form = "blast"

    def wrong(self) -> Iterator[tuple[Callable[[], object], str]]:
        o = draw_blast(5, (3, 4), 3, (8, 13))
        args = (o.x[:, :5], o.left, o.right, o.third, (8, 13))
        yield partial(blast_linear, *args), r"x has shape \(5, 5\).*\(\.\.\., 13\)"


@pytest.mark.parametrize("form", ["even", "tree", "dense", "nothing"])
def test_gradients_of_other_tilings(form: str) -> None:
    o = FORMS[form](3)
    assert torch.autograd.gradcheck(lambda *ts: call_with(o, list(ts), "silu"), leaves(o))


# ---- the tables and launches --------------------------------------------------------------------


def test_every_rank_has_one_place_on_the_other_side() -> None:
    for form in ("even", "ragged", "tree", "monarch"):
        f = FORMS[form](1).form
        ranks = sum(p.ranks for p in f.right.panels)
        places = [slot for slot in f.link if slot >= 0]
        assert len(places) == len(set(places)) == ranks == sum(p.ranks for p in f.left.panels)
        assert all(f.link[f.link_back[slot]] == slot for slot in places)


@pytest.mark.parametrize("chip", KNOWN)
def test_chunks_share_the_cache_and_cover_the_rows(chip: str) -> None:
    problem = Problem(8192, 4096, 4096, 256, torch.bfloat16)
    config = launch.forward(problem, KNOWN[chip])
    assert config is not None
    form = tiling_of(fused.uniform_grid(4096, 4096, 256)).form
    rows = fused.chunk_of(config, 8192, form.left.slots, torch.bfloat16)
    assert rows % config.blocks["BM"] == 0
    assert rows * form.left.slots * 2 <= KNOWN[chip].l2 / 2
    assert form.rank == 256


@pytest.mark.parametrize("rows", [16, 100, 8192])
def test_neighbours_hold_every_row_of_one_launch(rows: int) -> None:
    problem = Problem(rows, 4096, 4096, 256, torch.bfloat16)
    config = launch.forward(problem, H200)
    assert config is not None
    found = list(launch.neighbours(config, problem, H200))
    assert len(found) >= 8
    for other in found:
        assert other != config
        assert config in list(launch.neighbours(other, problem, H200))
        assert other.kernel != "decode" or other.blocks["BM"] >= rows


def test_what_is_not_served_is_left_to_the_library() -> None:
    problem = Problem(64, 4096, 4096, 256, torch.bfloat16)
    for other in (
        problem._replace(dtype=torch.float64),
        problem._replace(rows=0),
        problem._replace(out=8),
    ):
        assert launch.forward(other, H200) is None
        assert launch.backward(other, H200) is None
    # Tiles of blocks of 3 x 3 would be mask but for a part in thirty.
    small = draw_tiling(64, grid([3] * 16, [3] * 16, lambda i, j: 1), (48, 48))
    config = launch.forward(problem._replace(rows=200), H200)
    assert config is not None
    assert not fused._worthwhile(small.form, config, False, torch.device("cpu"))


def test_words_are_read_back() -> None:
    tiling = tiling_of(words(RAGGED, (9, 10)))
    assert words(tiling.blocks, tiling.shape) == words(RAGGED, (9, 10))
    assert [b.rank for b in tiling.dense] == [-1]
