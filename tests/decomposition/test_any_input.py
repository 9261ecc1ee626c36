"""What the laws of methods leave out: ranks of several modes, and what is made of no weight."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tensorlrf import decomposition
from tests.decomposition.every import matrix
from tests.torch_defaults import defaults


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
