from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tensorlrf.errors import ShapeError
from tensorlrf.factors import Factors, LowRank
from tests.laws.factors import FactorLaws


def random_lowrank(seed: int, dtype: torch.dtype) -> LowRank:
    g = torch.Generator().manual_seed(seed)
    left = torch.randn(6, 3, generator=g, dtype=torch.float64).to(dtype)
    right = torch.randn(3, 20, generator=g, dtype=torch.float64).to(dtype)
    return LowRank(left, right, (6, 5, 2, 2))


class TestLowRank(FactorLaws):
    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> LowRank:
        return random_lowrank(seed, dtype)

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, LowRank)
        return torch.einsum("or,rn->on", factors.left, factors.right).reshape(6, 5, 2, 2)


def test_shape_defaults_to_the_matrix() -> None:
    assert LowRank(torch.ones(4, 2), torch.ones(2, 7)).shape == (4, 7)


@pytest.mark.parametrize("shape", [(4, 6), (7, 4), (4, 7, 2), (28,)])
def test_refuses_a_shape_that_does_not_hold_the_matrix(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="shape="):
        LowRank(torch.ones(4, 2), torch.ones(2, 7), shape)
