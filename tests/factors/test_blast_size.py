"""Factors that share bases are put together without more numbers than they need."""

from __future__ import annotations

import pytest
import torch

from tensorlrf.decomposition.blocks._blast_als import Bases
from tensorlrf.factors import BlastFactors
from tests.factors.test_tt import cores
from tests.largest import Largest


@pytest.mark.parametrize(("p", "q"), [(1, 1), (1, 8), (8, 1), (4, 4), (8, 8)])
@pytest.mark.parametrize("r", [3, 64])
def test_rebuilding_makes_nothing_larger_than_the_whole(p: int, q: int, r: int) -> None:
    """Nor than the bases themselves: left scaled for all q columns of blocks is q times left."""
    m, n = 64, 48
    left, right, scales = cores([(p, m // p, r), (q, r, n // q), (p, q, r)], 0, torch.float64)
    most = max(m * n, (m + n) * r)
    with Largest() as largest:
        whole = BlastFactors(left, right, scales).to_dense()
    assert largest.numbers <= most
    with Largest() as largest:
        again = Bases(left, right, scales).dense()
    assert largest.numbers <= most
    expected = torch.einsum("iar,ijr,jrb->iajb", left, scales, right).reshape(m, n)
    torch.testing.assert_close(whole, expected)
    torch.testing.assert_close(again.reshape(m, n), expected)


def test_gradients_need_nothing_larger_either() -> None:
    m, n, p, q, r = 64, 48, 8, 8, 32
    leaves = cores([(p, m // p, r), (q, r, n // q), (p, q, r)], 0, torch.float64)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    with Largest() as largest:
        BlastFactors(*leaves).to_dense().square().sum().backward()
    assert largest.numbers <= max(m * n, (m + n) * r)
    assert all(leaf.grad is not None and leaf.grad.norm() > 0 for leaf in leaves)
