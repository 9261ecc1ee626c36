from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tensorlrf.errors import ShapeError
from tensorlrf.factors import Factors, LowRank
from tests.factors.test_tt import cores
from tests.laws.factors import FactorLaws


class TestLowRank(FactorLaws):
    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> LowRank:
        return LowRank(*cores([(6, 3), (3, 20)], seed, dtype), (6, 5, 2, 2))

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, LowRank)
        return torch.einsum("or,rn->on", factors.left, factors.right).reshape(6, 5, 2, 2)


def test_shape_defaults_to_the_matrix() -> None:
    assert LowRank(torch.ones(4, 2), torch.ones(2, 7)).shape == (4, 7)


@pytest.mark.parametrize("shape", [(4, 6), (7, 4), (4, 7, 2), (28,)])
def test_refuses_a_shape_that_does_not_hold_the_matrix(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="shape="):
        LowRank(torch.ones(4, 2), torch.ones(2, 7), shape)
