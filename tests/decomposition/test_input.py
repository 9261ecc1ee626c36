"""What every decomposition checks before it begins."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tensorlrf.decomposition._input import as_tensor, working_dtype
from tensorlrf.decomposition.random_state import generator
from tensorlrf.errors import ArgumentError, ShapeError


def test_numpy_is_shared_and_left_alone() -> None:
    array = np.arange(6.0).reshape(2, 3)
    tensor = as_tensor(array)
    array[0, 0] = 7.0
    assert tensor[0, 0] == 7.0
    fixed = np.ones((2, 3))
    fixed.flags.writeable = False
    assert torch.equal(as_tensor(fixed), torch.ones(2, 3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[1.0, 2.0]], "weight is a list; pass a torch.Tensor or a numpy array"),
        (torch.ones(2, 2, dtype=torch.int64), "weight has dtype torch.int64.*cast it first"),
        (torch.ones(2, 2, dtype=torch.bool), "weight has dtype torch.bool"),
        (torch.ones(2, 2, dtype=torch.complex64), "real and imaginary parts apart"),
        (torch.tensor([[1.0, float("nan")]]), "weight contains NaN"),
        (torch.tensor([[1.0, float("inf")]]), "weight contains Inf"),
        (torch.tensor([[1.0, -float("inf")]]), "weight contains Inf"),
    ],
)
def test_values_that_cannot_be_decomposed(value: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        as_tensor(value, "weight")


def test_shapes_that_cannot_be_decomposed() -> None:
    with pytest.raises(ShapeError, match=r"shape \(3,\); at least 2 modes"):
        as_tensor(torch.ones(3))
    with pytest.raises(ShapeError, match=r"shape \(3, 0\), which holds no element"):
        as_tensor(torch.ones(3, 0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_raised(dtype: torch.dtype) -> None:
    assert working_dtype(dtype) == torch.float32
    assert as_tensor(torch.ones(2, 2, dtype=dtype)).dtype == dtype
    assert working_dtype(torch.float64) == torch.float64


def test_generator_seeds_repeat_and_leave_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    device = torch.device("cpu")
    first = torch.rand(3, generator=generator(5, device))
    assert torch.equal(first, torch.rand(3, generator=generator(5, device)))
    given = torch.Generator().manual_seed(5)
    assert generator(given, device) is given
    assert generator(None, device).initial_seed() != generator(None, device).initial_seed()
    assert torch.equal(torch.get_rng_state(), before)
    for wrong in ("7", 1.5, True):
        with pytest.raises(ArgumentError, match="random_state="):
            generator(wrong, device)  # type: ignore[arg-type]
