from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import Factors, HTFactors
from tests.factors.test_tt import cores
from tests.laws.factors import FactorLaws

SIZES = [(3, 2), (4, 3), (2, 2), (5, 2)]


class TestHTFactors(FactorLaws):
    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> HTFactors:
        *leaves, root, one, other = cores([*SIZES, (1, 3, 2), (3, 2, 3), (2, 2, 2)], seed, dtype)
        return HTFactors(tuple(leaves), (root, one, other))

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, HTFactors)
        root, one, other = factors.transfers
        return torch.einsum("xy,xab,ycd,ia,jb,kc,ld->ijkl", root[0], one, other, *factors.leaves)


class TestHTFactorsOfAnotherTree(FactorLaws):
    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> HTFactors:
        *leaves, root, inner = cores([*SIZES[:3], (1, 3, 2), (2, 2, 2)], seed, dtype)
        return HTFactors(tuple(leaves), (root, inner), (1, (2, 0)))

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, HTFactors)
        root, inner = factors.transfers
        return torch.einsum("bx,xca,ia,jb,kc->ijk", root[0], inner, *factors.leaves)


@pytest.mark.parametrize(
    "tree",
    [((0, 1), 2), ((0, 1), (2, 2)), (0, 1, 2, 3), 0, ((0, 1), ("2", 3)), ((0, 1), (True, 3))],
)
def test_refuses_what_is_no_tree_of_the_modes(tree: Any) -> None:
    f = TestHTFactors().sample()
    with pytest.raises(ArgumentError, match="tree"):
        HTFactors(f.leaves, f.transfers, tree)


def test_refuses_a_transfer_too_few_and_ranks_that_do_not_chain() -> None:
    f = TestHTFactors().sample()
    with pytest.raises(ShapeError, match="2 transfers for 3 inner nodes"):
        HTFactors(f.leaves, f.transfers[:2])
    with pytest.raises(ShapeError, match=r"transfers\[1\], of the node \(0, 1\), is"):
        HTFactors(f.leaves, (f.transfers[0], f.transfers[1].mT, f.transfers[2]))
