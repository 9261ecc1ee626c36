from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import CPFactors, Factors
from tests.laws.factors import FactorLaws


class TestCPFactors(FactorLaws):
    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> CPFactors:
        g = torch.Generator().manual_seed(seed)

        def draw(*size: int) -> Tensor:
            return torch.randn(*size, generator=g, dtype=torch.float64).to(dtype)

        return CPFactors(draw(3), tuple(draw(n, 3) for n in (5, 4, 2, 3)))

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
    g = torch.Generator().manual_seed(order)
    factors = tuple(torch.randn(k + 2, 3, generator=g, dtype=torch.float64) for k in range(order))
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
