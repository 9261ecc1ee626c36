from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import tensorly
import torch
from tensorly.cp_tensor import CPTensor
from tensorly.tucker_tensor import TuckerTensor

from tensorlrf.errors import ArgumentError
from tensorlrf.factors import (
    CPFactors,
    LowRank,
    TRFactors,
    TTFactors,
    TTMatrix,
    TuckerFactors,
    from_tensorly,
    to_tensorly,
)


@pytest.fixture(autouse=True)
def torch_backend() -> Iterator[None]:
    with tensorly.backend_context("pytorch"):
        yield


def cp_sample() -> CPFactors:
    g = torch.Generator().manual_seed(0)
    return CPFactors(
        torch.rand(3, generator=g), tuple(torch.rand(n, 3, generator=g) for n in (4, 5))
    )


def tucker_sample() -> TuckerFactors:
    g = torch.Generator().manual_seed(0)
    core = torch.rand(2, 3, 4, generator=g)
    factors = tuple(torch.rand(n, r, generator=g) for n, r in ((5, 2), (6, 3), (4, 4)))
    return TuckerFactors(core, factors)


def test_cp_there_and_back_shares_memory() -> None:
    f = cp_sample()
    theirs = to_tensorly(f)
    assert isinstance(theirs, CPTensor)
    torch.testing.assert_close(theirs.to_tensor(), f.to_dense())
    back = from_tensorly(theirs)
    assert isinstance(back, CPFactors)
    for n, t in back.tensors().items():
        assert t.data_ptr() == f.tensors()[n].data_ptr()


def test_tucker_there_and_back_shares_memory() -> None:
    f = tucker_sample()
    theirs = to_tensorly(f)
    assert isinstance(theirs, TuckerTensor)
    torch.testing.assert_close(theirs.to_tensor(), f.to_dense())
    back = from_tensorly(theirs)
    assert isinstance(back, TuckerFactors)
    for n, t in back.tensors().items():
        assert t.data_ptr() == f.tensors()[n].data_ptr()


def test_partial_tucker_means_the_same_tensor_there() -> None:
    f = tucker_sample()
    partial = TuckerFactors(f.core, (f.factors[0], f.factors[1]), (0, 1))
    torch.testing.assert_close(to_tensorly(partial).to_tensor(), partial.to_dense())


def trains() -> list[TTFactors | TTMatrix | TRFactors]:
    def cores(*sizes: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
        g = torch.Generator().manual_seed(0)
        return tuple(torch.rand(*size, generator=g) for size in sizes)

    return [
        TTFactors(cores((1, 4, 2), (2, 3, 3), (3, 5, 1))),
        TTMatrix(cores((1, 2, 3, 2), (2, 4, 2, 1))),
        TRFactors(cores((2, 4, 3), (3, 3, 2), (2, 5, 2))),
    ]


@pytest.mark.parametrize("f", trains(), ids=lambda f: f.format)
def test_trains_there_and_back_share_memory(f: TTFactors | TTMatrix | TRFactors) -> None:
    theirs = to_tensorly(f)
    torch.testing.assert_close(theirs.to_tensor().reshape(f.shape), f.to_dense())
    back = from_tensorly(theirs)
    assert type(back) is type(f)
    for n, t in back.tensors().items():
        assert t.data_ptr() == f.tensors()[n].data_ptr()


def test_refuses_what_tensorly_cannot_say() -> None:
    train, matrix, ring = trains()
    for f in (
        TTFactors(tuple(train.tensors().values()), (0, 2, 1)),
        TTMatrix(tuple(matrix.tensors().values()), (7, 6)),
        TRFactors(tuple(ring.tensors().values()), (12, 5)),
    ):
        with pytest.raises(ArgumentError, match="factors"):
            to_tensorly(f)


def test_takes_numpy_arrays_and_absent_weights() -> None:
    with tensorly.backend_context("numpy"):
        theirs = CPTensor((None, [np.ones((4, 2)), np.ones((3, 2))]))
    f = from_tensorly(theirs)
    assert isinstance(f, CPFactors)
    assert f.dtype == torch.float64
    torch.testing.assert_close(f.to_dense(), torch.full((4, 3), 2.0, dtype=torch.float64))


def test_refuses_what_tensorly_lacks() -> None:
    with pytest.raises(ArgumentError, match="LowRank"):
        to_tensorly(LowRank(torch.ones(2, 1), torch.ones(1, 2)))
    with pytest.raises(ArgumentError, match="list"):
        from_tensorly([torch.ones(2)])
