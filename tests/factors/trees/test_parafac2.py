from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import Factors, Parafac2Factors, from_tensorly, to_tensorly
from tests.factors.test_tt import cores
from tests.laws.factors import FactorLaws

ROWS = (4, 2, 3)


class TestParafac2Factors(FactorLaws):
    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> Parafac2Factors:
        weights, a, b, c, p = cores([(2,), (3, 2), (2, 2), (5, 2), (9, 2)], seed, dtype)
        return Parafac2Factors(weights, (a, b, c), p, ROWS)

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, Parafac2Factors)
        weights, (a, b, c), projections = factors
        slices = [p @ b @ torch.diag(weights * a[k]) @ c.T for k, p in enumerate(projections)]
        return torch.cat(slices)


def orthonormal() -> Parafac2Factors:
    f = TestParafac2Factors().sample()
    whole = torch.cat([torch.linalg.qr(p)[0] for p in f.projection_list])
    return Parafac2Factors(f.weights, f.factors, whole, f.rows)


def test_errors_are_told_of_slices_however_they_are_held() -> None:
    f = TestParafac2Factors().sample()
    slices = [x.numpy() + 0.1 for x in f.slices()]
    whole = f.to_dense() + 0.1
    assert f.rel_error(slices) == f.rel_error(whole) > 0
    even = Parafac2Factors(f.weights, f.factors, f.projections, (3, 3, 3))
    stack = even.to_dense().reshape(3, 3, 5) + 0.1
    assert even.rel_error(stack) == even.rel_error(list(stack))
    with pytest.raises(ShapeError, match="has slices of"):
        f.rel_error(list(stack))


def test_the_evolving_factor_has_one_cross_product() -> None:
    f = orthonormal()
    for own in f.evolving():
        torch.testing.assert_close(own.T @ own, f.factors[1].T @ f.factors[1])


def test_goes_to_tensorly_and_back() -> None:
    f = orthonormal()
    theirs = to_tensorly(f)
    assert theirs.shape == ((4, 5), (2, 5), (3, 5))
    assert theirs.factors[0] is f.factors[0]
    back: Any = from_tensorly(theirs)
    assert back.rows == f.rows
    assert torch.equal(back.to_dense(), f.to_dense())


@pytest.mark.parametrize("rows", [(4, 2), (4, 2, 4), (4, 5, 0), ()])
def test_refuses_rows_that_do_not_fit(rows: tuple[int, ...]) -> None:
    f = TestParafac2Factors().sample()
    with pytest.raises((ArgumentError, ShapeError), match=r"slices|rows="):
        Parafac2Factors(f.weights, f.factors, f.projections, rows)
    with pytest.raises(ArgumentError, match="there are 3"):
        Parafac2Factors(f.weights, f.factors[:2], f.projections, ROWS)  # type: ignore[arg-type]  # two
