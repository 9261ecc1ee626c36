"""A weight in few bits and the low rank of what that loses."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import tensorlrf
from tensorlrf.decomposition import fit_low_rank_plus_quantized
from tensorlrf.errors import ArgumentError, RankError
from tensorlrf.factors import Quantized
from tests.draws import seeded
from tests.metrics import output_error, second_moments


def test_turns_lower_the_loss_below_that_of_rounding_and_its_error() -> None:
    w = seeded(48, 3, seed=1) @ seeded(3, 32, seed=2) + 0.3 * seeded(48, 32)
    rounded = Quantized.encode(w, "int4", group=32)
    rest = w - rounded.to_dense()
    once = float((rest - tensorlrf.svd(rest, 3).to_dense()).norm() / w.norm())
    fit = fit_low_rank_plus_quantized(w, 3)
    assert all(b <= a for a, b in pairwise(fit.errors[:-1]))
    assert fit.error < 0.7 * once < rounded.rel_error(w)
    assert fit.factors.parts[1].n_bytes == rounded.n_bytes


def test_serves_the_outputs_of_inputs() -> None:
    w = seeded(40, 32)
    gram = second_moments(seeded(32, 200, seed=5) * torch.linspace(0.1, 3, 32).double()[:, None])
    aware, plain = (fit_low_rank_plus_quantized(w, 4, **k) for k in ({"gram": gram}, {}))
    assert aware.error < 0.98 * output_error(w, plain.factors, gram)


def test_refuses_by_name() -> None:
    w = seeded(12, 10)
    with pytest.raises(ArgumentError, match="group=4 does not divide the 10 inputs"):
        fit_low_rank_plus_quantized(w, 2, group=4)
    with pytest.raises(ArgumentError, match="codes='int16'"):
        fit_low_rank_plus_quantized(w, 2, codes="int16")
    with pytest.raises(RankError, match=r"rank=0\.1 is a share below that of the weight in int8"):
        fit_low_rank_plus_quantized(w, 0.1, codes="int8")
