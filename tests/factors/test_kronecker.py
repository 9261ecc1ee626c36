from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tensorlrf.errors import ShapeError
from tensorlrf.factors import Factors, KroneckerSum
from tests.factors.test_tt import cores
from tests.laws.factors import FactorLaws


class TestKroneckerSum(FactorLaws):
    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> KroneckerSum:
        return KroneckerSum(*cores([(3, 2, 4), (3, 5, 3)], seed, dtype))

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, KroneckerSum)
        terms = zip(factors.a, factors.b, strict=True)
        return torch.stack([torch.kron(a, b) for a, b in terms]).sum(0)


class TestKroneckerSumOfAKernel(FactorLaws):
    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> KroneckerSum:
        return KroneckerSum(*cores([(2, 2, 4), (2, 5, 3, 3, 1)], seed, dtype))

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, KroneckerSum)
        terms = zip(factors.a[..., None, None], factors.b, strict=True)
        return torch.stack([torch.kron(a, b) for a, b in terms]).sum(0)


@pytest.mark.parametrize(
    ("a", "b"), [((3, 2, 4), (2, 5, 3)), ((2, 4), (3, 5, 3)), ((3, 2, 4), (5, 3)),
                 ((0, 2, 4), (0, 5, 3))]
)  # fmt: skip
def test_refuses_sizes_that_are_no_sum(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"KroneckerSum"):
        KroneckerSum(torch.ones(a), torch.ones(b))
