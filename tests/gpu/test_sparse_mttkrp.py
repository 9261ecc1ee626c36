"""sparse_mttkrp's kernels on a GPU. Needs torch, Triton and pytest alone."""

from __future__ import annotations

import pytest
import torch

from tensorlrf_kernels.sparse_mttkrp import reference, sparse_mttkrp
from tests.kernels.drawn.lowrank import assert_within
from tests.kernels.drawn.sparse import bound, draw, exact

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("ieee_float32", "launches_succeed")]

CASES = (  # lengths of rows, sizes of other modes, columns
    ([700] * 300, (200, 300), 16),
    ([0, 1, 2, 3] * 900, (50, 60, 70), 33),
    ([0, 100_000, 0, 7, 64, 65, 0], (900,), 100),
)
DTYPES = (torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{len(case[0])} rows")
def test_follows_the_definition_with_the_same_bits_each_time(case, dtype) -> None:  # type: ignore[no-untyped-def]  # a row of CASES
    for index in (torch.int32, torch.int64):
        o = draw(*case, dtype, index=index, device="cuda")
        y = sparse_mttkrp(*o.operands)
        assert_within(y, exact(o), bound(o))
        assert torch.equal(y, sparse_mttkrp(*o.operands))


def test_gradients_agree_with_the_definition() -> None:
    o = draw([3, 0, 200, 40], (30, 40), 8, torch.float64, device="cuda")
    leaves = [t.requires_grad_() for t in (o.values, *o.factors)]
    dy = torch.randn(4, 8, dtype=torch.float64, device="cuda")
    found = torch.autograd.grad(sparse_mttkrp(*o.operands), leaves, dy)
    wanted = torch.autograd.grad(reference.sparse_mttkrp(*o.operands), leaves, dy)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
