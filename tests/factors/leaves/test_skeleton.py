"""Columns and rows obey the laws of factors, but for their indices, which are whole numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import Factors, Grouped, Skeleton
from tests.draws import seeded
from tests.laws.factors import FactorLaws

INDICES = ("column_indices", "row_indices")


def indices(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def cur(seed: int = 0) -> Skeleton:
    """Of a kernel, with fewer rows than columns."""
    parts = seeded(6, 3, seed=seed), seeded(3, 2, seed=seed + 50), seeded(2, 8, seed=seed + 90)
    return Skeleton(*parts, indices(7, 0, 3), indices(5, 1), dense_shape=(6, 4, 2))


def interpolated(seed: int = 0) -> Skeleton:
    return Skeleton(
        seeded(6, 3, seed=seed), None, seeded(3, 8, seed=seed + 9), row_indices=indices(5, 0, 2)
    )


def symmetric(seed: int = 0) -> Skeleton:
    return Skeleton(seeded(6, 3, seed=seed), seeded(3, 3, seed=seed + 5))


class TestCUR(FactorLaws):
    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> Skeleton:
        return cur(seed).to(dtype)

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, Skeleton)
        assert factors.core is not None
        assert factors.rows is not None
        whole = torch.einsum("ip,pq,qj->ij", factors.columns, factors.core, factors.rows)
        return whole.reshape(factors.shape)

    def test_multilinear_in_each_tensor(self) -> None:
        """In those of floats."""
        f, g = self.sample(0), self.sample(1)
        for name in f.tensors().keys() - INDICES:
            tensors, other = f.tensors(), g.tensors()[name]
            mixed = Skeleton.from_tensors({**tensors, name: 2 * tensors[name] + other}, f.meta())
            swapped = Skeleton.from_tensors({**tensors, name: other}, f.meta())
            expected = 2 * f.to_dense() + swapped.to_dense()
            torch.testing.assert_close(mixed.to_dense(), expected, rtol=1e-11, atol=1e-11)

    def test_counts_what_is_stored(self) -> None:
        f = self.sample()
        whole = sum(t.numel() for name, t in f.tensors().items() if name in INDICES)
        floats = f.n_params - whole
        assert floats == sum(t.numel() for n, t in f.tensors().items() if n not in INDICES)
        assert f.n_bytes == 8 * floats + 4 * whole
        assert f.to(torch.float16).n_bytes == 2 * floats + 4 * whole

    def test_gradients_reach_every_tensor(self) -> None:
        f = self.sample()
        names = [name for name in f.tensors() if name not in INDICES]

        def dense(*tensors: Tensor) -> Tensor:
            named = dict(zip(names, tensors, strict=True))
            return Skeleton.from_tensors({**f.tensors(), **named}, f.meta()).to_dense()

        leaves = [f.tensors()[name].detach().requires_grad_() for name in names]
        assert torch.autograd.gradcheck(dense, leaves)

    def test_detach_cuts_the_graph(self) -> None:
        f = self.sample().map(lambda t: t.detach().requires_grad_())
        assert f.columns.requires_grad
        assert not any(t.requires_grad for t in f.detach().tensors().values())


class TestInterpolated(TestCUR):
    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> Skeleton:
        return interpolated(seed).to(dtype)

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, Skeleton)
        assert factors.rows is not None
        return torch.einsum("ip,pj->ij", factors.columns, factors.rows)


class TestSymmetric(TestCUR):
    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> Skeleton:
        return symmetric(seed).to(dtype)

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, Skeleton)
        assert factors.core is not None
        return torch.einsum("ip,pq,jq->ij", factors.columns, factors.core, factors.columns)

    def test_multilinear_in_each_tensor(self) -> None:
        """In the core; of the columns it is a square."""
        f = self.sample()
        twice = Skeleton(2 * f.columns, f.core)
        torch.testing.assert_close(twice.to_dense(), 4 * f.to_dense())


def test_sizes_and_what_was_picked() -> None:
    assert (cur().shape, cur().rank, cur().n_params) == ((6, 4, 2), 2, 18 + 6 + 16 + 5)
    assert (interpolated().shape, interpolated().rank) == ((6, 8), 3)
    assert symmetric().shape == (6, 6)
    picked = interpolated().row_indices
    assert picked is not None
    assert picked.tolist() == [5, 0, 2]
    assert interpolated().column_indices is None


def test_what_does_not_fit() -> None:
    columns, rows = seeded(6, 3), seeded(3, 8)
    with pytest.raises(ArgumentError, match="column_indices holds 8; they count from 0 to 7"):
        Skeleton(columns, None, rows, column_indices=indices(0, 8, 1))
    with pytest.raises(ArgumentError, match="row_indices holds -1; they count from 0 to 5"):
        Skeleton(columns, None, rows, row_indices=indices(0, 3, -1))
    with pytest.raises(ArgumentError, match=r"torch.int64 .* must be torch.int32"):
        Skeleton(columns, None, rows, row_indices=indices(0, 3, 1).long())
    with pytest.raises(ShapeError, match=r"row_indices is \(2,\); there are 3"):
        Skeleton(columns, None, rows, row_indices=indices(0, 3))
    with pytest.raises(ShapeError, match="3 columns, 2 rows and no core"):
        Skeleton(columns, None, rows[:2])
    with pytest.raises(ShapeError, match="must be matrices"):
        Skeleton(columns[0], None, rows)
    with pytest.raises(ShapeError, match=r"shape=\(6, 9\) does not hold a 6 x 8 matrix"):
        Skeleton(columns, None, rows, dense_shape=(6, 9))


def test_groups_have_no_indices_in_common() -> None:
    with pytest.raises(ArgumentError, match=r"groups\[0\] is a Skeleton.*svd"):
        Grouped.stack([cur(), cur(1)])
