"""What the ops are given in place of a dense tensor is refused with the remedy, by every format."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tensorlrf import decomposition, ops
from tensorlrf.errors import ArgumentError
from tests.draws import seeded
from tests.ops.samples import CONV_FORMATS, LINEAR_FORMATS, random_factors

CASES: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "coo": (Tensor.to_sparse, r"layout torch\.sparse_coo; pass \.to_dense\(\)"),
    "array": (Tensor.numpy, "is a ndarray; pass a torch.Tensor"),
    "list": (Tensor.tolist, "is a list; pass a torch.Tensor"),
    "nested": (lambda x: torch.nested.nested_tensor([x, x[:1]]), "is a nested tensor"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("format", LINEAR_FORMATS)
def test_linear(format: str, case: str) -> None:
    make, told = CASES[case]
    m, n = 8, 6
    factors = random_factors(format, (m, n), 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: nested tensors are in beta
        x, bias = make(seeded(3, n)), make(seeded(m))
    with pytest.raises(ArgumentError, match=f"^x .*{told}"):
        ops.linear(x, factors)
    with pytest.raises(ArgumentError, match=f"^bias .*{told}"):
        ops.linear(seeded(3, n), factors, bias)


@pytest.mark.parametrize("format", CONV_FORMATS)
def test_conv2d(format: str) -> None:
    factors = random_factors(format, (8, 6, 3, 3), 3)
    x = seeded(2, 6, 6, 6)
    for value, told in ((x.to_sparse(), r"pass \.to_dense\(\)"), (x.numpy(), "is a ndarray")):
        with pytest.raises(ArgumentError, match=f"^x .*{told}"):
            ops.conv2d(value, factors)


def test_embedding() -> None:
    factors = decomposition.svd(seeded(20, 8), 3)
    with pytest.raises(ArgumentError, match=r"indices .*pass \.to_dense\(\)"):
        ops.embedding(torch.tensor([1, 2]).to_sparse(), factors)
    with pytest.raises(ArgumentError, match="indices is ndarray"):
        ops.embedding(np.array([1, 2]), factors)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "told"),
    [(lambda v: v.to("meta"), "meta device"), (Tensor.to_sparse, r"pass \.to_dense\(\)")],
)
def test_values_of_a_function(make: Callable[[Tensor], Tensor], told: str) -> None:
    with pytest.raises(ArgumentError, match=f"what function returned at .*{told}"):
        decomposition.tt_cross(lambda at: make(at.sum(1).double()), (4, 4, 4), 2)
