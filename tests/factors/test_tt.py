from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import Factors, TTFactors, TTMatrix
from tests.draws import generator
from tests.laws.factors import FactorLaws


def cores(sizes: Sequence[tuple[int, ...]], seed: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    draws = generator(seed)
    return tuple(torch.randn(s, generator=draws, dtype=torch.float64).to(dtype) for s in sizes)


class TestTT(FactorLaws):
    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> TTFactors:
        return TTFactors(cores([(1, 4, 2), (2, 3, 3), (3, 5, 2), (2, 2, 1)], seed, dtype))

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, TTFactors)
        return torch.einsum("xap,pbq,qcr,rdy->abcd", *factors.cores)


class TestTTInAnotherOrder(FactorLaws):
    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> TTFactors:
        sizes = [(1, 6, 2), (2, 3, 3), (3, 2, 2), (2, 5, 1)]
        return TTFactors(cores(sizes, seed, dtype), modes=(0, 2, 3, 1))

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, TTFactors)
        return torch.einsum("xop,phq,qwr,riy->oihw", *factors.cores)


class TestTTMatrix(FactorLaws):
    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> TTMatrix:
        return TTMatrix(cores([(1, 2, 3, 2), (2, 4, 2, 3), (3, 1, 2, 1)], seed, dtype))

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, TTMatrix)
        return torch.einsum("xaip,pbjq,qcky->abcijk", *factors.cores).reshape(8, 12)


class TestPaddedTTMatrix(FactorLaws):
    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> TTMatrix:
        return TTMatrix(cores([(1, 2, 3, 2), (2, 4, 4, 1)], seed, dtype), (7, 11))

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, TTMatrix)
        whole = torch.einsum("xaip,pbjy->abij", *factors.cores).reshape(8, 12)
        return whole[:7, :11]


def test_ranks_have_ones_at_both_ends() -> None:
    assert TestTT().sample().rank == (1, 2, 3, 2, 1)
    assert TestTTMatrix().sample().rank == (1, 2, 3, 1)


@pytest.mark.parametrize(
    "sizes", [[(1, 4, 2), (3, 3, 1)], [(2, 4, 2), (2, 3, 1)], [(1, 4, 2), (2, 3, 2)], [(1, 4)]]
)
def test_refuses_ranks_that_do_not_chain(sizes: list[tuple[int, ...]]) -> None:
    with pytest.raises(ShapeError, match=r"rank|must be"):
        TTFactors(cores(sizes, 0, torch.float64))


def test_refuses_what_is_no_order_of_the_modes() -> None:
    with pytest.raises(ArgumentError, match="modes="):
        TTFactors(cores([(1, 4, 2), (2, 3, 1)], 0, torch.float64), modes=(0, 2))
    with pytest.raises(ArgumentError, match="cores"):
        TTFactors(())


@pytest.mark.parametrize("shape", [(9, 11), (7, 13), (0, 5), (7,), (7, 11, 1)])
def test_refuses_a_shape_above_the_padded_one(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="shape="):
        TTMatrix(cores([(1, 2, 3, 2), (2, 4, 4, 1)], 0, torch.float64), shape)
