"""lowrank_embedding and tt_embedding against their definitions, as ops of torch's dispatcher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tensorlrf_kernels.lowrank_embedding import lowrank_embedding
from tensorlrf_kernels.lowrank_embedding import reference as rows
from tensorlrf_kernels.tt_embedding import reference as train
from tensorlrf_kernels.tt_embedding import tt_embedding
from tests.draws import seeded
from tests.kernels.drawn.embedding import Lookup, draw_indices, matrices, trains
from tests.kernels.drawn.lowrank import assert_within, roundoff
from tests.laws.kernels import KernelLaws

F64 = torch.float64
SHAPE = (23, 11)  # of a train of 4 x 6 rows and 3 x 4 columns: both are padded


def lookup(
    kind: str, indices: Tensor, dtype: torch.dtype = F64, padding: int | None = None
) -> Lookup:
    if kind == "tt":
        return trains((4, 6, 3, 4), 5, indices, dtype, SHAPE, padding)
    return matrices(*SHAPE, 5, indices, dtype, padding)


def run(o: Lookup, one: Tensor | None = None, other: Tensor | None = None) -> Tensor:
    one, other = (o.one, o.other) if one is None or other is None else (one, other)
    if one.ndim == 3:
        return tt_embedding(o.indices, one, other, o.shape, o.padding_idx)
    return lowrank_embedding(o.indices, one, other, o.padding_idx)


def chain(o: Lookup, one: Tensor, other: Tensor) -> Tensor:
    if one.ndim == 3:
        cores = (one[None], other[..., None])
        return train.tt_embedding(o.indices, cores, o.shape, o.padding_idx)
    return rows.lowrank_embedding(o.indices, one, other, o.padding_idx)


@pytest.mark.parametrize("kind", ["lowrank", "tt"])
def test_rows_of_the_table_by_indices_in_int32(kind: str) -> None:
    indices = draw_indices(6, 23).view(2, 3)
    o = lookup(kind, indices.int())
    y = run(o)
    assert y.is_contiguous()
    torch.testing.assert_close(y, o.table()[indices], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", [run, chain])
@pytest.mark.parametrize("padding", [None, 2])
@pytest.mark.parametrize("kind", ["lowrank", "tt"])
def test_gradients_are_those_through_the_dense_table(
    kind: str, padding: int | None, way: Callable[..., Tensor]
) -> None:
    indices = draw_indices(40, 23, spread=5).view(5, 8)
    indices[1, :3] = 2
    o = lookup(kind, indices, padding=padding)
    leaves = [t.clone().requires_grad_() for t in (o.one, o.other)]
    dy = seeded(5, 8, 11, seed=3)
    got = torch.autograd.grad(way(o, *leaves), leaves, dy)
    for g, want in zip(got, o.gradients(dy), strict=True):
        torch.testing.assert_close(g, want, rtol=1e-12, atol=1e-12)
    for k in (0, 1):  # one alone
        (g,) = torch.autograd.grad(way(o, *leaves), leaves[k], dy)
        torch.testing.assert_close(g, got[k], rtol=0, atol=0)
    if padding is not None and kind == "lowrank":
        assert not got[0][2].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_equal_indices_are_added_up_in_float32(dtype: torch.dtype) -> None:
    values, indices = seeded(3000, 4).to(dtype), draw_indices(3000, 23, spread=2)
    got = rows.segment_sums(values, indices, 23, None, dtype)
    wide = rows.segment_sums(values.double(), indices, 23, None, F64)
    size = rows.segment_sums(values.double().abs(), indices, 23, None, F64)
    # A sum of 3000 terms in float32, rounded once; in half precision it would be off by a tenth.
    bound = 3000 * roundoff(torch.float32) * size + roundoff(dtype) * wide.abs() + 1e-30
    assert_within(got, wide, bound, "sums")


def test_float32_rows_beside_a_factor_of_half_precision() -> None:
    o = matrices(23, 11, 5, draw_indices(30, 23), torch.float32)
    o.other = o.other.bfloat16()
    leaves = [t.requires_grad_() for t in (o.one, o.other)]
    y = run(o, *leaves)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert [t.grad.dtype for t in leaves if t.grad is not None] == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("kind", ["lowrank", "tt"])
def test_an_index_out_of_range_is_an_index_error(kind: str) -> None:
    o = lookup(kind, draw_indices(4, 23))
    for beyond in (-1, 23, 24, 10**6):
        o.indices = torch.tensor([3, beyond])
        for way in (run, chain):
            with pytest.raises(IndexError):
                way(o, o.one, o.other)


def test_sizes_of_zero() -> None:
    indices = torch.tensor([0, 2])
    assert not lowrank_embedding(indices, torch.ones(3, 0), torch.ones(0, 4)).any()
    assert lowrank_embedding(indices, torch.ones(3, 2), torch.ones(2, 0)).shape == (2, 0)
    left = torch.ones(3, 2, requires_grad=True)
    y = lowrank_embedding(indices[:0], left, torch.ones(2, 4))
    y.sum().backward()
    assert y.shape == (0, 4)
    assert left.grad is not None
    assert not left.grad.any()


I, LEFT, RIGHT = torch.tensor([1, 2]), torch.ones(3, 2), torch.ones(2, 4)
A, B = torch.ones(3, 2, 5), torch.ones(5, 4, 3)


class LookupLaws(KernelLaws):
    """The operands are the factors; `leaves` draws the indices as well, as many as its lead."""

    kind: str
    indices: Tensor

    def leaves(self, *lead: int) -> list[Tensor]:
        self.indices = draw_indices(torch.Size(lead).numel(), 23).view(lead)
        o = lookup(self.kind, self.indices)
        return [o.one, o.other]

    def given(self, operands: tuple[Tensor, ...]) -> Lookup:
        one, other = operands
        return Lookup(self.indices, one, other, SHAPE, 4)

    def run(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        return run(self.given(operands), *operands)

    def chain(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        return chain(self.given(operands), *operands)

    def exact(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        return self.given(operands).table()[self.indices]


class TestLowrankEmbedding(LookupLaws):
    kind = "lowrank"

    def calls(self) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        op, leaves = torch.ops.tensorlrf, self.drawn(2, 3)
        yield op.lowrank_embedding, (self.indices, *leaves, 2)
        detached = self.leaves(2, 3)
        for needed in ([True, True], [True, False]):
            args = (seeded(2, 3, 11), self.indices, *detached, -1, needed)
            yield op.lowrank_embedding_backward, args

    def wrong(self) -> Iterator[tuple[Callable[[], object], str]]:
        for args, words in (
            ((I, LEFT, RIGHT[:1]), r"right has shape \(1, 4\).*with r = 2 as left"),
            ((I, LEFT[0], RIGHT), r"left has shape \(2,\); it must be \(n, r\)"),
            ((I.float(), LEFT, RIGHT), "indices has dtype torch.float32.*int32 or"),
            ((I, LEFT.half(), RIGHT), "right has dtype torch.float32, left"),
            ((I, LEFT, RIGHT[:1].half()), r"right is \(1, 4\).*r = 2"),
            ((I.to("meta"), LEFT, RIGHT), "indices is on meta, left on cpu"),
            ((I, LEFT, RIGHT, 3), "padding_idx=3 is no row of a table of 3.*-3 to 2"),
        ):
            yield partial(lowrank_embedding, *args), words  # type: ignore[arg-type]  # wrong ones


class TestTTEmbedding(LookupLaws):
    kind = "tt"

    def calls(self) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        op, leaves = torch.ops.tensorlrf, self.drawn(2, 3)
        yield op.tt_embedding, (self.indices, *leaves, *SHAPE, 2)
        detached = self.leaves(2, 3)
        for needed in ([True, True], [False, True]):
            args = (seeded(2, 3, 11), self.indices, *detached, SHAPE[0], -1, needed)
            yield op.tt_embedding_backward, args

    def wrong(self) -> Iterator[tuple[Callable[[], object], str]]:
        for args, words in (
            ((I, A, B[:4]), r"second has shape \(4, 4, 3\).*with r = 5 as first"),
            ((I, A, B, (13, 6)), r"shape=\(13, 6\).*n <= 12 and d <= 6"),
            ((I, A, B, (11, 6), 11), "padding_idx=11 is no row of a table of 11"),
        ):
            yield partial(tt_embedding, *args), words  # type: ignore[arg-type]  # wrong ones
