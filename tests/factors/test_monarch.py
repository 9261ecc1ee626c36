from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tensorlrf.errors import ShapeError
from tensorlrf.factors import BlastFactors, Factors, MonarchFactors
from tests.factors.test_tt import cores
from tests.laws.factors import FactorLaws


class TestMonarch(FactorLaws):
    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> MonarchFactors:
        return MonarchFactors(*cores([(3, 4, 2, 2), (2, 3, 2, 5)], seed, dtype))

    def dense_by_definition(self, factors: Factors) -> Tensor:
        """Two block-diagonal matrices, with the permutations written out."""
        assert isinstance(factors, MonarchFactors)
        Q, S, K, r = factors.left.shape
        first = torch.block_diag(*factors.right.flatten(1, 2))  # (K Q r, K P)
        middle = torch.arange(K * Q * r).reshape(K, Q, r).transpose(0, 1).flatten()
        last = torch.block_diag(*factors.left.flatten(2))  # (Q S, Q K r)
        rows = torch.arange(Q * S).reshape(Q, S).T.flatten()
        return (last @ first[middle])[rows]


class TestBlast(FactorLaws):
    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> BlastFactors:
        return BlastFactors(*cores([(3, 4, 2), (2, 2, 5), (3, 2, 2)], seed, dtype))

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, BlastFactors)
        rows = []
        for left, scales in zip(factors.left, factors.scales, strict=True):
            blocks = zip(scales, factors.right, strict=True)
            rows.append(torch.cat([left @ s.diag() @ right for s, right in blocks], dim=1))
        return torch.cat(rows)


class TestPaddedMonarch(TestMonarch):
    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> MonarchFactors:
        return MonarchFactors(*cores([(3, 4, 2, 2), (2, 3, 2, 5)], seed, dtype), (10, 9))

    def dense_by_definition(self, factors: Factors) -> Tensor:
        return super().dense_by_definition(factors)[:10, :9]


class TestPaddedBlast(TestBlast):
    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> BlastFactors:
        return BlastFactors(*cores([(3, 4, 2), (2, 2, 5), (3, 2, 2)], seed, dtype), (11, 9))

    def dense_by_definition(self, factors: Factors) -> Tensor:
        return super().dense_by_definition(factors)[:11, :9]


@pytest.mark.parametrize("shape", [(9, 10), (13, 10), (12, 8), (12,), (12, 10, 1)])
def test_padding_is_up_to_the_next_block(shape: tuple[int, ...]) -> None:
    monarch, blast = TestMonarch().sample(), TestBlast().sample()
    with pytest.raises(ShapeError, match="shape="):
        MonarchFactors(monarch.left, monarch.right, shape)
    with pytest.raises(ShapeError, match="shape="):
        BlastFactors(blast.left, blast.right, blast.scales, shape)


def test_sizes() -> None:
    monarch, blast = TestMonarch().sample(), TestBlast().sample()
    assert (monarch.shape, monarch.rank, monarch.blocks) == ((12, 10), 2, (3, 2))
    assert (blast.shape, blast.rank, blast.blocks) == ((12, 10), 2, (3, 2))
