"""What the laws of methods leave out: several ranks, and what is made of no weight."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tensorlrf import decomposition
from tensorlrf.decomposition._input import as_tensor, working_dtype
from tests.decomposition.every import matrix
from tests.torch_defaults import defaults


def test_numpy_is_shared_and_left_alone() -> None:
    array = np.arange(6.0).reshape(2, 3)
    tensor = as_tensor(array)
    array[0, 0] = 7.0
    assert tensor[0, 0] == 7.0
    fixed = np.ones((2, 3))
    fixed.flags.writeable = False
    assert torch.equal(as_tensor(fixed), torch.ones(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_raised(dtype: torch.dtype) -> None:
    assert working_dtype(dtype) == torch.float32
    assert as_tensor(torch.ones(2, 2, dtype=dtype)).dtype == dtype
    assert working_dtype(torch.float64) == torch.float64


def test_ranks_of_several_modes_may_be_arrays() -> None:
    expected = decomposition.tucker(matrix(), (3, 2)).tensors()
    for ranks in (np.array([3, 2]), torch.tensor([3, 2]), (np.int64(3), torch.tensor(2))):
        for key, tensor in decomposition.tucker(matrix(), ranks).tensors().items():
            assert torch.equal(tensor, expected[key])


@pytest.mark.parametrize("kind", ["meta", "float64", "float16"])
def test_torchs_defaults_do_not_reach_what_is_made_of_no_weight(kind: str) -> None:
    with defaults(kind):
        spectrum = decomposition.evbmf(matrix())
        widths = decomposition.scree(matrix()).shape
        train = decomposition.tt_cross(lambda at: 1 / (1 + at.sum(1).double()), (6, 6, 6), 3)
    assert math.isfinite(spectrum.noise_variance)
    assert widths == (16, 12)
    assert {t.device.type for t in train.tensors().values()} == {"cpu"}
    assert train.dtype == torch.float64
