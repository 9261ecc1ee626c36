from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import CPFactors, Factors
from tests.factors.test_tt import cores
from tests.laws.factors import FactorLaws


class TestCPFactors(FactorLaws):
    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> CPFactors:
        weights, *factors = cores([(3,), (5, 3), (4, 3), (2, 3), (3, 3)], seed, dtype)
        return CPFactors(weights, tuple(factors))

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, CPFactors)
        return torch.einsum("r,ar,br,cr,dr->abcd", factors.weights, *factors.factors)


def test_unpacks_as_weights_and_factors() -> None:
    f = TestCPFactors().sample()
    weights, factors = f
    assert weights is f.weights
    assert factors is f.factors


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_any_order(order: int) -> None:
    factors = cores([(k + 2, 3) for k in range(order)], order, torch.float64)
    f = CPFactors(torch.ones(3, dtype=torch.float64), factors)
    expected = torch.zeros(f.shape, dtype=torch.float64)
    for j in range(3):
        term = factors[0][:, j]
        for m in factors[1:]:
            term = term[..., None] * m[:, j]
        expected += term
    torch.testing.assert_close(f.to_dense(), expected, rtol=1e-12, atol=1e-12)


def test_refuses_no_modes_and_matrices_for_weights() -> None:
    with pytest.raises(ArgumentError, match="empty"):
        CPFactors(torch.ones(2), ())
    with pytest.raises(ShapeError, match="weights"):
        CPFactors(torch.ones(2, 2), (torch.ones(3, 2),))
