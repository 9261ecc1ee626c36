"""Batches and groups: factors of one structure stacked, each of which is there as it was."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import (
    Batch,
    CPFactors,
    Factors,
    Grouped,
    KroneckerSum,
    LowRank,
    TuckerFactors,
)
from tests.factors.test_tt import cores
from tests.laws.factors import FactorLaws


class StackLaws(FactorLaws):
    """The laws, and those of stacks; subclasses give one of them by its tensors' `sizes`."""

    batch_shape: tuple[int, ...] = (3,)
    sizes: tuple[tuple[int, ...], ...]
    einsum: str
    shape: tuple[int, ...]

    def one(self, *normal: Tensor) -> Factors:
        raise NotImplementedError

    def stack(self, places: list[Factors]) -> Any:
        return Batch.stack(places, self.batch_shape)

    def places(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Factors]:
        n = math.prod(self.batch_shape)
        return [self.one(*cores(self.sizes, n * seed + k, dtype)) for k in range(n)]

    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> Factors:
        found: Factors = self.stack(self.places(seed, dtype))
        return found

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, (Batch, Grouped))
        return torch.einsum(self.einsum, *factors.parts.values()).reshape(self.shape)

    def test_each_is_what_was_stacked(self) -> None:
        parts = self.places(5)
        whole = self.stack(parts)
        assert (whole.of, whole.rank) == (parts[0].format, parts[0].rank)
        for place, part in zip(product(*map(range, self.batch_shape)), parts, strict=True):
            got = whole[place] if isinstance(whole, Batch) else whole.group(*place)
            assert type(got) is type(part)
            assert got.meta() == part.meta()
            for name, t in got.tensors().items():
                assert torch.equal(t, part.tensors()[name])
                assert t.data_ptr() == whole.parts[name][place].data_ptr()


class BatchLaws(StackLaws):
    def test_a_batch_has_places_and_rows(self) -> None:
        parts = self.places(5)
        whole = self.stack(parts)
        assert whole.batch_shape == self.batch_shape
        assert whole.shape == (*self.batch_shape, *parts[0].shape)
        assert len(whole) == len(list(whole)) == self.batch_shape[0]
        dense = whole.to_dense()
        for place, part in zip(product(*map(range, self.batch_shape)), parts, strict=True):
            assert torch.equal(dense[place], part.to_dense())
        assert torch.equal(whole[-1].to_dense(), dense[-1])
        for row, expected in zip(whole, dense, strict=True):
            assert row.shape == tuple(expected.shape)
            assert torch.equal(row.to_dense(), expected)


class GroupLaws(StackLaws):
    batch_shape = (2,)

    def stack(self, places: list[Factors]) -> Any:
        return Grouped.stack(places)

    def test_a_group_is_counted_from_either_end(self) -> None:
        parts = self.places(5)
        whole = self.stack(parts)
        assert whole.groups == 2
        assert torch.equal(whole.group(-1).to_dense(), parts[-1].to_dense())


class OfLowRank(StackLaws):
    sizes = ((4, 2), (2, 10))

    def one(self, *normal: Tensor) -> Factors:
        return LowRank(*normal, (4, 5, 2))


class OfTucker(StackLaws):
    sizes = ((2, 3, 4), (5, 2), (6, 4))

    def one(self, *normal: Tensor) -> Factors:
        core, *sides = normal
        return TuckerFactors(core, tuple(sides), (0, 2))


class TestBatchOfLowRank(OfLowRank, BatchLaws):
    einsum, shape = "bor,brn->bon", (3, 4, 5, 2)


class TestBatchOfTucker(OfTucker, BatchLaws):
    batch_shape = (2, 1, 2)
    einsum, shape = "xyzaib,xyzoa,xyzkb->xyzoik", (2, 1, 2, 5, 3, 6)


class TestBatchOfKronecker(BatchLaws):
    batch_shape = (1, 2)
    sizes = ((3, 2, 4), (3, 5, 3))
    einsum, shape = "xysij,xyskl->xyikjl", (1, 2, 10, 12)

    def one(self, *normal: Tensor) -> Factors:
        return KroneckerSum(*normal)


class TestGroupedLowRank(OfLowRank, GroupLaws):
    einsum, shape = "gor,grn->gon", (8, 5, 2)


class TestGroupedTucker(OfTucker, GroupLaws):
    einsum, shape = "gaib,goa,gkb->goik", (10, 3, 6)


class TestGroupedCP(GroupLaws):
    sizes = ((3,), (4, 3), (2, 3), (5, 3))
    einsum, shape = "gr,gor,gir,gkr->goik", (8, 2, 5)

    def one(self, *normal: Tensor) -> Factors:
        weights, *modes = normal
        return CPFactors(weights, tuple(modes))


def lowrank(m: int = 4, r: int = 2, n: int = 6, **options: object) -> LowRank:
    return LowRank(torch.ones(m, r, **options), torch.ones(r, n, **options))  # type: ignore[call-overload]


@pytest.mark.parametrize(("kind", "word"), [(Batch, "places"), (Grouped, "groups")])
def test_what_cannot_be_stacked(kind: Any, word: str) -> None:
    f, core = lowrank(), torch.ones(2, 2)
    with pytest.raises(ArgumentError, match=rf"{word}=\(\) is empty"):
        kind.stack([])
    with pytest.raises(ArgumentError, match=rf"{word}\[1\] is a Tensor; pass the factors of one"):
        kind.stack([f, torch.ones(4, 6)])
    with pytest.raises(ArgumentError, match=rf"{word}\[0\] is a {kind.__name__}"):
        kind.stack([kind.stack([f])])
    with pytest.raises(ArgumentError, match=rf"{word}\[1\] is a CPFactors, {word}\[0\] a LowRank"):
        kind.stack([f, CPFactors(torch.ones(2), (torch.ones(4, 2), torch.ones(6, 2)))])
    for other in (lowrank(r=1), lowrank(m=3), LowRank(f.left, f.right, (4, 2, 3))):
        with pytest.raises(ShapeError, match=rf"{word}\[1\] has shape .* all {word} must"):
            kind.stack([f, other])
    with pytest.raises(ShapeError, match=rf"{word}\[1\] has shape"):
        kind.stack([TuckerFactors(core, (core,), (k,)) for k in (0, 1)])
    for options in ({"dtype": torch.float64}, {"device": "meta"}):
        with pytest.raises(ArgumentError, match=rf"{word}\[1\] is .*bring them together"):
            kind.stack([f, lowrank(**options)])


def test_a_batch_of_another_shape() -> None:
    f = lowrank()
    with pytest.raises(ShapeError, match=r"batch_shape=\(2, 2\) has 4 places, 3 were given"):
        Batch.stack([f] * 3, (2, 2))
    with pytest.raises(ArgumentError, match=r"batch_shape=\(\) must be one or more"):
        Batch.stack([f], ())


@pytest.mark.parametrize("index", [2, -3, True, 1.0, slice(None), (0, 3), (0, 0, 0), ()])
def test_a_place_that_is_not_there(index: Any) -> None:
    f = Batch.stack([lowrank()] * 6, (2, 3))
    with pytest.raises(ArgumentError, match=r"index .* \(2, 3\)"):
        f[index]


@pytest.mark.parametrize("k", [3, -4, True, 1.0])
def test_a_group_that_is_not_there(k: Any) -> None:
    f = Grouped.stack([lowrank()] * 3)
    with pytest.raises(ArgumentError, match=r"must be a group, from 0 to 2"):
        f.group(k)


ODD: list[tuple[dict[str, Any], str]] = [
    ({"of": "svd"}, "of='svd' is unknown; choose one of (?=.*cp, )(?=.*lowrank, )"),
    ({"of": ["lowrank"]}, "of="),
    ({"meta": {"shape": [4, 7]}}, "does not hold a 4 x 6 matrix"),
    ({"meta": {}}, "'shape' is missing"),
    ({"meta": 3}, "meta=3"),
]
OF_BATCHES: list[tuple[dict[str, Any], str]] = [
    ({"of": "batch"}, "of='batch' is unknown"),
    ({"batch_shape": [0]}, r"batch_shape=\(0,\) must be"),
    ({"batch_shape": []}, r"batch_shape=\(\) must be"),
    ({"batch_shape": [2]}, r"left is .* the batch \(2,\)"),
    ({"batch_shape": [3, 4, 2, 1]}, r"left is .* the batch"),
    ({"batch_shape": ["3"]}, "batch_shape="),
    ({"batch_shape": "3"}, "batch_shape='3'"),
    ({"batch_shape": 3}, "batch_shape=3"),
]
OF_GROUPS: list[tuple[dict[str, Any], str]] = [
    ({"of": "grouped"}, "of='grouped' is unknown"),
    ({"groups": 0}, "groups=0 must be an int of at least 1"),
    ({"groups": 2}, "left is .* the 2 groups"),
    ({"groups": "3"}, "groups='3'"),
]


@pytest.mark.parametrize(("kind", "odd"), [(Batch, OF_BATCHES), (Grouped, OF_GROUPS)])
def test_what_a_file_may_say_that_does_not_fit(kind: Any, odd: Any) -> None:
    f = kind.stack([lowrank()] * 3)
    meta = f.meta()
    for wrong, message in (*ODD, *odd):
        with pytest.raises(ArgumentError, match=message):
            kind.from_tensors(f.tensors(), {**meta, **wrong})
    with pytest.raises(ShapeError, match="left is "):
        kind.from_tensors({**f.tensors(), "left": torch.ones(())}, meta)


def test_the_meta_is_a_copy() -> None:
    for kind in (Batch, Grouped):
        f = kind.stack([lowrank()])
        shape, meta = f.shape, f.meta()
        meta["meta"]["shape"] = []
        if kind is Batch:
            meta["batch_shape"].append(2)
        assert f.shape == shape
