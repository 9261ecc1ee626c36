from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import BlockTerm, Factors
from tests.factors.test_tt import cores
from tests.laws.factors import FactorLaws


class TestBlockTerm(FactorLaws):
    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> BlockTerm:
        sizes = [(2, 2, 3, 2), (2, 4, 2), (2, 5, 3), (2, 3, 2)]
        core, *factors = cores(sizes, seed, dtype)
        return BlockTerm(core, tuple(factors))

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, BlockTerm)
        return torch.einsum("sxyz,sax,sby,scz->abc", factors.cores, *factors.factors)


class TestBlockTermLL1(FactorLaws):
    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> BlockTerm:
        core, a, c = cores([(3, 2, 5, 1), (3, 4, 2), (3, 6, 1)], seed, dtype)
        return BlockTerm(core, (a, c), (0, 2))

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, BlockTerm)
        matrices = torch.einsum("sxb,sax->sab", factors.cores[..., 0], factors.factors[0])
        return torch.einsum("sab,sc->abc", matrices, factors.factors[1][..., 0])


def test_terms_are_tucker_tensors_that_sum_to_the_whole() -> None:
    f = TestBlockTermLL1().sample()
    total = torch.stack([term.to_dense() for term in f.terms()]).sum(0)
    torch.testing.assert_close(total, f.to_dense())


@pytest.mark.parametrize("modes", [(1, 0, 2), (0, 0, 1), (0, 1, 3), (-1, 0, 1), (0, 1)])
def test_refuses_modes_out_of_order_or_range(modes: tuple[int, ...]) -> None:
    f = TestBlockTerm().sample()
    with pytest.raises(ArgumentError, match="modes="):
        BlockTerm(f.cores, f.factors, modes)
    with pytest.raises(ShapeError, match="the factors of mode 1 are"):
        BlockTerm(f.cores, (f.factors[0], f.factors[1][:1], f.factors[2]))
