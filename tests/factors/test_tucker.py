from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.errors import ArgumentError
from tensorlrf.factors import Factors, TuckerFactors
from tensorlrf.factors.algebra import mode_product
from tests.factors.test_tt import cores
from tests.laws.factors import FactorLaws


class TestTuckerFactors(FactorLaws):
    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> TuckerFactors:
        core, a, b, c = cores([(3, 2, 4), (5, 3), (4, 2), (3, 4)], seed, dtype)
        return TuckerFactors(core, (a, b, c))

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, TuckerFactors)
        return torch.einsum("xyz,ax,by,cz->abc", factors.core, *factors.factors)


class TestPartialTuckerFactors(FactorLaws):
    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> TuckerFactors:
        core, b, d = cores([(5, 3, 4, 2), (6, 3), (7, 2)], seed, dtype)
        return TuckerFactors(core, (b, d), (1, 3))

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, TuckerFactors)
        return torch.einsum("ayce,by,de->abcd", factors.core, *factors.factors)


def test_unpacks_as_core_and_factors() -> None:
    f = TestTuckerFactors().sample()
    core, factors = f
    assert core is f.core
    assert factors is f.factors


@pytest.mark.parametrize("modes", [(1, 0), (0, 0), (0, 3), (-1, 0)])
def test_refuses_modes_out_of_order_or_range(modes: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match="modes="):
        TuckerFactors(torch.ones(2, 2, 2), (torch.ones(3, 2), torch.ones(3, 2)), modes)


def test_refuses_a_factor_too_few() -> None:
    with pytest.raises(ArgumentError, match="one matrix a mode"):
        TuckerFactors(torch.ones(2, 2, 2), (torch.ones(3, 2),), (0, 1))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_mode_product_is_the_unfolding_product(data: st.DataObject) -> None:
    sizes = tuple(data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4)))
    mode = data.draw(st.integers(0, len(sizes) - 1))
    tensor, matrix = cores([sizes, (3, sizes[mode])], 0, torch.float64)
    if data.draw(st.booleans()):
        tensor = tensor.transpose(0, -1).contiguous().transpose(0, -1)
    expected = torch.tensordot(matrix, tensor, dims=([1], [mode])).movedim(0, mode)
    torch.testing.assert_close(mode_product(tensor, matrix, mode), expected)
