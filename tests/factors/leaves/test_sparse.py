"""Sparse tensors obey the laws of factors, but for their coordinates; and are made from much."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import tensorlrf
from tensorlrf import SparseTensor
from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError
from tensorlrf.factors import Batch, Factors
from tests.draws import generator, seeded
from tests.laws.factors import FactorLaws

SHAPE = (4, 3, 5)
PLACES = torch.tensor(
    [[0, 0, 1, 1, 3, 3, 3], [0, 2, 0, 0, 1, 2, 2], [4, 0, 1, 3, 2, 0, 4]], dtype=torch.int32
)


class TestSparse(FactorLaws):
    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> SparseTensor:
        return SparseTensor(seeded(7, seed=seed, dtype=dtype), PLACES, SHAPE)

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, SparseTensor)
        whole = torch.zeros(SHAPE, dtype=factors.dtype, device="cpu")
        for value, at in zip(factors.values, factors.coordinates.T.tolist(), strict=True):
            whole[tuple(at)] = value
        return whole

    def test_multilinear_in_each_tensor(self) -> None:
        """In its values."""
        f, g = self.sample(0), self.sample(1)
        mixed = SparseTensor(2 * f.values + g.values, PLACES, SHAPE)
        torch.testing.assert_close(mixed.to_dense(), 2 * f.to_dense() + g.to_dense())

    def test_counts_what_is_stored(self) -> None:
        f = self.sample()
        assert f.n_params == 7 + 3 * 7
        assert f.n_bytes == 8 * 7 + 4 * 3 * 7
        assert f.to(torch.float16).n_bytes == 2 * 7 + 4 * 3 * 7

    def test_gradients_reach_every_tensor(self) -> None:
        def dense(values: Tensor) -> Tensor:
            return SparseTensor(values, PLACES, SHAPE).to_dense()

        assert torch.autograd.gradcheck(dense, self.sample().values.requires_grad_())

    def test_detach_cuts_the_graph(self) -> None:
        f = self.sample().map(lambda t: t.detach().requires_grad_())
        assert f.values.requires_grad
        assert not f.detach().values.requires_grad


# ---- how it is made -----------------------------------------------------------------------------


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_a_dense_tensor_comes_back(shape: list[int], seed: int, dtype: torch.dtype) -> None:
    dense = seeded(*shape, seed=seed, dtype=dtype)
    dense[seeded(*shape, seed=seed + 100) > 0] = 0
    f = SparseTensor.of(dense)
    assert torch.equal(f.to_dense(), dense)
    assert f.nnz == int((dense != 0).sum())
    assert torch.equal(SparseTensor.of(f.to_torch()).to_dense(), dense)
    assert torch.equal(f.to_torch().to_dense(), dense)
    modes = torch.randperm(len(shape), generator=generator(seed)).tolist()
    turned = f.permute(*modes)
    turned.check()
    assert torch.equal(turned.to_dense(), dense.permute(modes))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_other_kinds_of_sparse_tensors() -> None:
    dense = seeded(6, 4)
    dense[dense < 0.5] = 0
    kinds = [dense.to_sparse(), dense.to_sparse_csr(), dense.to_sparse_csc()]
    kinds.append(dense.to_sparse_bsr((2, 2)))
    layouts = scipy.sparse.csr_array, scipy.sparse.csc_matrix, scipy.sparse.coo_array
    kinds.extend(layout(dense.numpy()) for layout in layouts)
    for kind in (*kinds, dense.numpy(), SparseTensor.of(dense)):
        f = SparseTensor.of(kind)
        f.check()
        assert torch.equal(f.to_dense(), dense)
    cube = scipy.sparse.coo_array(dense.reshape(3, 2, 4).numpy())
    assert torch.equal(SparseTensor.of(cube).to_dense(), dense.reshape(3, 2, 4))


def test_any_order_of_entries_is_one_tensor() -> None:
    order = torch.randperm(7, generator=generator(1))
    values = seeded(7)
    f = SparseTensor.from_coordinates(PLACES[:, order], values[order], SHAPE)
    assert torch.equal(f.coordinates, PLACES)
    assert torch.equal(f.values, values)
    assert SparseTensor.from_coordinates(PLACES.numpy(), values.numpy()).shape == (4, 3, 5)


def test_huge_sizes_take_no_memory() -> None:
    n = 10**9
    places = [[n - 1, 0, 5], [0, n - 1, 5], [3, n - 1, 0], [1, 1, 1]]
    f = SparseTensor.from_coordinates(places, [1.0, 2.0, 3.0], (n, n, n, n))
    assert f.values.tolist() == [2.0, 3.0, 1.0]
    assert f.n_bytes == 3 * 4 + 4 * 3 * 4
    assert "1,000,000,000,000,000,000,000,000,000,000,000,000 entries" in repr(f)
    with pytest.raises(UnsupportedError, match="more than fit any memory; cp"):
        f.to_dense()
    wider = SparseTensor.from_coordinates([[2**40], [0]], [1.0], (2**41, 3))
    assert wider.coordinates.dtype == torch.int64
    assert wider.permute(1, 0).shape == (3, 2**41)


def test_none_at_all() -> None:
    f = SparseTensor.from_coordinates([[], []], [], (3, 4))
    assert (f.nnz, f.shape) == (0, (3, 4))
    assert torch.equal(f.to_dense(), torch.zeros(3, 4, dtype=f.dtype, device="cpu"))
    assert SparseTensor.of(f.to_torch()).nnz == 0


# ---- bad input ----------------------------------------------------------------------------------


def test_the_first_coordinate_that_does_not_fit_is_named() -> None:
    values = seeded(3)

    def refused(coordinates: object, match: str, shape: object = (3, 4)) -> None:
        with pytest.raises(ArgumentError, match=match):
            SparseTensor.from_coordinates(coordinates, values, shape)  # type: ignore[arg-type]

    refused([[0, 2, 3], [0, 9, 4]], r"coordinates\[1, 1\] = 9 is outside of mode 1, .* 0 to 3")
    refused([[0, -1, 3], [0, 1, 4]], r"coordinates\[0, 1\] = -1 is outside of mode 0")
    refused([[0, 2, 2], [0, 1, 1]], r"\(2, 1\) twice, at 1 and 2 \(1 repeated in all\); dup.*'sum'")
    refused([[0.0, 2, 2], [0, 1, 1]], "float.*; they are whole numbers, cast them first")
    refused([[0, 1, 2]], r"1 rows for the 2 modes")
    refused([[0, 1], [0, 1]], r"\(2, 2\) for 3 values")
    refused([[0, 1], [0, 1], [2, 1]], r"pass coordinates.T", (3, 2))
    refused([[0, 1, 2], [0, 1, 2]], "shape='34' must be a tuple", "34")
    refused([[0, 1, 2], [0, 1, 2]], r"must be ints", (3.0, 4))
    refused([[0, 1, 2], [0, 1, 2]], r"holds no entry", (3, 0))
    with pytest.raises(
        ArgumentError, match="duplicates='max' is unknown; choose one of error, sum"
    ):
        SparseTensor.from_coordinates([[0, 1, 2]], values, duplicates="max")
    with pytest.raises(ArgumentError, match="shape=None needs coordinates"):
        SparseTensor.from_coordinates([[], []], [])


def test_values_that_are_no_floats() -> None:
    places = [[0, 1], [0, 1]]
    for bad in ([1, 2], np.array([True, False]), torch.tensor([1j, 2j])):
        with pytest.raises(ArgumentError, match="cast it first"):
            SparseTensor.from_coordinates(places, bad)
    with pytest.raises(ShapeError, match=r"values has shape \(1, 2\)"):
        SparseTensor.from_coordinates(places, [[1.0, 2.0]])
    with pytest.raises(ArgumentError, match="cast it first"):
        SparseTensor.of(torch.eye(3, dtype=torch.int64, device="cpu"))
    with pytest.raises(ArgumentError, match="cast it first"):
        SparseTensor.of(scipy.sparse.csr_array(np.eye(3, dtype=np.int64)))
    with pytest.raises(ArgumentError, match="hybrid"):
        SparseTensor.of(seeded(3, 4).to_sparse(1))
    with pytest.raises(ArgumentError, match="is a list"):
        SparseTensor.of([[1.0]])


def test_duplicates_are_added_where_that_is_asked_for() -> None:
    places = torch.tensor([[1, 0, 1], [2, 1, 2]], dtype=torch.int64, device="cpu")
    coo = torch.sparse_coo_tensor(places, seeded(3), (2, 3), check_invariants=True)
    with pytest.raises(ArgumentError, match=r"\(1, 2\) twice, at 0 and 2"):
        SparseTensor.of(coo)
    summed = SparseTensor.of(coo, duplicates="sum")
    torch.testing.assert_close(summed.to_dense(), coo.to_dense())
    summed.check()


def test_the_constructor_takes_what_is_stored() -> None:
    values = seeded(7)
    with pytest.raises(ArgumentError, match=r"has \(0, 0, 4\) behind \(0, 2, 0\), at 1.*sorts"):
        SparseTensor(values, PLACES[:, [1, 0, 2, 3, 4, 5, 6]], SHAPE)
    with pytest.raises(ArgumentError, match=r"has \(0, 0, 4\) behind \(0, 0, 4\), at 1"):
        SparseTensor(values, PLACES[:, [0, 0, 2, 3, 4, 5, 6]], SHAPE)
    with pytest.raises(ArgumentError, match=r"coordinates is torch.int64.*must be torch.int32"):
        SparseTensor(values, PLACES.long(), SHAPE)
    with pytest.raises(ArgumentError, match=r"SparseTensor: coordinates\[2, 0\] = 4 is outside"):
        SparseTensor(values, PLACES, (4, 3, 4))
    with pytest.raises(ArgumentError, match=r"modes=.*must hold each number from 0 to 2 once"):
        SparseTensor(values, PLACES, SHAPE).permute(0, 1)
    with pytest.raises(ArgumentError):
        Batch.stack([SparseTensor(values, PLACES, SHAPE)] * 2)


def test_it_is_a_public_name() -> None:
    assert tensorlrf.SparseTensor is SparseTensor
