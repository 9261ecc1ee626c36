from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import Batch, CPFactors, Factors, KroneckerSum, LowRank, TuckerFactors
from tests.laws.factors import FactorLaws


class BatchLaws(FactorLaws):
    """The laws, and those of batches; subclasses give one place."""

    batch_shape: tuple[int, ...] = (3,)

    def one(self, *normal: Tensor) -> Factors:
        raise NotImplementedError

    def sizes(self) -> list[tuple[int, ...]]:
        """Of the tensors of one place."""
        raise NotImplementedError

    def places(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Factors]:
        g = torch.Generator().manual_seed(seed)

        def normal(size: tuple[int, ...]) -> Tensor:
            return torch.randn(*size, generator=g, dtype=torch.float64).to(dtype)

        n = len(list(product(*map(range, self.batch_shape))))
        return [self.one(*map(normal, self.sizes())) for _ in range(n)]

    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> Batch:
        return Batch.stack(self.places(seed, dtype), self.batch_shape)

    def test_the_places_are_those_that_were_stacked(self) -> None:
        parts = self.places(5)
        whole = Batch.stack(parts, self.batch_shape)
        assert (whole.batch_shape, whole.of) == (self.batch_shape, parts[0].format)
        assert whole.shape == (*self.batch_shape, *parts[0].shape)
        assert whole.rank == parts[0].rank
        assert len(whole) == len(list(whole)) == self.batch_shape[0]
        dense = whole.to_dense()
        for place, part in zip(product(*map(range, self.batch_shape)), parts, strict=True):
            got = whole[place]
            assert type(got) is type(part)
            assert got.meta() == part.meta()
            assert torch.equal(dense[place], part.to_dense())
            for name, t in got.tensors().items():
                assert torch.equal(t, part.tensors()[name])
                assert t.data_ptr() == whole.parts[name][place].data_ptr()
        assert torch.equal(whole[-1].to_dense(), dense[-1])
        for row, expected in zip(whole, dense, strict=True):
            assert row.shape == tuple(expected.shape)
            assert torch.equal(row.to_dense(), expected)


class TestBatchOfLowRank(BatchLaws):
    def sizes(self) -> list[tuple[int, ...]]:
        return [(4, 2), (2, 10)]

    def one(self, *normal: Tensor) -> Factors:
        left, right = normal
        return LowRank(left, right, (4, 5, 2))

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, Batch)
        left, right = factors.parts["left"], factors.parts["right"].reshape(3, 2, 5, 2)
        return torch.einsum("bor,brik->boik", left, right)


class TestBatchOfTucker(BatchLaws):
    batch_shape = (2, 1, 2)

    def sizes(self) -> list[tuple[int, ...]]:
        return [(2, 3, 4), (5, 2), (6, 4)]

    def one(self, *normal: Tensor) -> Factors:
        core, out, last = normal
        return TuckerFactors(core, (out, last), (0, 2))

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, Batch)
        return torch.einsum("xyzaib,xyzoa,xyzkb->xyzoik", *factors.parts.values())


class TestBatchOfKronecker(BatchLaws):
    batch_shape = (1, 2)

    def sizes(self) -> list[tuple[int, ...]]:
        return [(3, 2, 4), (3, 5, 3)]

    def one(self, *normal: Tensor) -> Factors:
        a, b = normal
        return KroneckerSum(a, b)

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, Batch)
        return torch.einsum("xysij,xyskl->xyikjl", *factors.parts.values()).reshape(1, 2, 10, 12)


def lowrank(m: int = 4, r: int = 2, n: int = 6, **options: object) -> LowRank:
    return LowRank(torch.ones(m, r, **options), torch.ones(r, n, **options))  # type: ignore[call-overload]


def test_what_cannot_be_stacked() -> None:
    f = lowrank()
    with pytest.raises(ArgumentError, match=r"places=\(\) is empty"):
        Batch.stack([])
    with pytest.raises(ShapeError, match=r"batch_shape=\(2, 2\) has 4 places, 3 were given"):
        Batch.stack([f] * 3, (2, 2))
    with pytest.raises(ArgumentError, match=r"batch_shape=\(\) must be one or more"):
        Batch.stack([f], ())
    with pytest.raises(ArgumentError, match=r"places\[1\] is a Tensor; pass the factors of one"):
        Batch.stack([f, torch.ones(4, 6)])  # type: ignore[list-item]
    with pytest.raises(ArgumentError, match=r"places\[0\] is a Batch"):
        Batch.stack([Batch.stack([f])])
    with pytest.raises(ArgumentError, match=r"places\[1\] is a CPFactors, places\[0\] a LowRank"):
        Batch.stack([f, CPFactors(torch.ones(2), (torch.ones(4, 2), torch.ones(6, 2)))])
    for other in (lowrank(r=1), lowrank(m=3), LowRank(f.left, f.right, (4, 2, 3))):
        with pytest.raises(ShapeError, match=r"places\[1\] has shape .* all places must"):
            Batch.stack([f, other])
    for options in ({"dtype": torch.float64}, {"device": "meta"}):
        with pytest.raises(ArgumentError, match=r"places\[1\] is .*bring them together"):
            Batch.stack([f, lowrank(**options)])


@pytest.mark.parametrize("index", [2, -3, True, 1.0, slice(None), (0, 3), (0, 0, 0), ()])
def test_a_place_that_is_not_there(index: object) -> None:
    f = Batch.stack([lowrank()] * 6, (2, 3))
    with pytest.raises(ArgumentError, match=r"index .* \(2, 3\)"):
        f[index]  # type: ignore[index]


def test_what_a_file_may_say_that_does_not_fit() -> None:
    f = Batch.stack([lowrank()] * 3)
    meta = f.meta()
    for wrong, message in (
        ({"of": "svd"}, "of='svd' is unknown; choose one of .*cp, .*lowrank"),
        ({"of": "batch"}, "of='batch' is unknown"),
        ({"of": ["lowrank"]}, "of="),
        ({"batch_shape": [0]}, r"batch_shape=\(0,\) must be"),
        ({"batch_shape": []}, r"batch_shape=\(\) must be"),
        ({"batch_shape": [2]}, r"left is .* the batch \(2,\)"),
        ({"batch_shape": [3, 4, 2, 1]}, r"left is .* the batch"),
        ({"batch_shape": ["3"]}, "batch_shape="),
        ({"batch_shape": "3"}, "batch_shape='3'"),
        ({"batch_shape": 3}, "batch_shape=3"),
        ({"meta": {"shape": [4, 7]}}, "does not hold a 4 x 6 matrix"),
        ({"meta": {}}, "'shape' is missing"),
        ({"meta": 3}, "meta=3"),
    ):
        with pytest.raises(ArgumentError, match=message):
            Batch.from_tensors(f.tensors(), {**meta, **wrong})
    with pytest.raises(ShapeError, match="left is "):
        Batch.from_tensors({**f.tensors(), "left": torch.ones(())}, meta)


def test_the_meta_is_a_copy() -> None:
    f = Batch.stack([lowrank()])
    f.meta()["meta"]["shape"] = []
    f.meta()["batch_shape"].append(2)
    assert f.shape == (1, 4, 6)
