from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tensorlrf.errors import ShapeError
from tensorlrf.factors import Factors, TRFactors
from tests.factors.test_tt import cores
from tests.laws.factors import FactorLaws

SIZES = [(2, 4, 3), (3, 3, 2), (2, 5, 4), (4, 2, 2)]


class TestTR(FactorLaws):
    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> TRFactors:
        return TRFactors(cores([*SIZES], seed, dtype))

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, TRFactors)
        return torch.einsum("zap,pbq,qcr,rdz->abcd", *factors.cores)


class TestRingOfAMatrix(FactorLaws):
    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> TRFactors:
        return TRFactors(cores([*SIZES], seed, dtype), (12, 10))

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, TRFactors)
        return torch.einsum("zap,pbq,qcr,rdz->abcd", *factors.cores).reshape(12, 10)


def test_a_ring_of_one_core_is_a_trace() -> None:
    (core,) = cores([(3, 5, 3)], 0, torch.float64)
    expected = torch.stack([core[:, i].trace() for i in range(5)])
    torch.testing.assert_close(TRFactors((core,)).to_dense(), expected)


def test_knows_which_cores_make_up_an_entry_of_the_shape() -> None:
    ring = TRFactors(cores([*SIZES], 0, torch.float64), (12, 10))
    assert (ring.splits, ring.sizes, ring.rank) == ((2, 2), (4, 3, 5, 2), (2, 3, 2, 4, 2))
    ones = TRFactors(cores([(1, 1, 2), (2, 4, 1), (1, 1, 1)], 0, torch.float64), (1, 4))
    assert ones.splits == (1, 2)


@pytest.mark.parametrize("shape", [(10, 12), (120,), (4, 3, 5), (12, 5, 2, 2), (24, 5)])
def test_refuses_a_shape_across_cores(shape: tuple[int, ...]) -> None:
    given = cores([*SIZES], 0, torch.float64)
    if shape == (120,):
        assert TRFactors(given, shape).splits == (4,)
        return
    with pytest.raises(ShapeError, match="shape="):
        TRFactors(given, shape)


def test_refuses_a_ring_that_is_not_closed() -> None:
    with pytest.raises(ShapeError, match="one rank"):
        TRFactors(cores([(2, 4, 3), (3, 3, 1)], 0, torch.float64))
