"""PARAFAC2 of slices of many columns begins within their leading directions."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from tensorlrf.decomposition import fit_parafac2
from tensorlrf.decomposition.coupled import _parafac2_sweep
from tensorlrf.decomposition.coupled._parafac2_sweep import Narrow, Slices
from tests.decomposition.coupled.test_parafac2 import congruence, is_orthonormal, planted

ROWS = (20, 70, 35, 50, 14, 40)


def test_narrow_slices_hold_what_is_planted() -> None:
    _, slices = planted(ROWS, 60, 3)
    narrow = Narrow.of(Slices(slices, 3))
    assert narrow is not None
    assert narrow.slices.columns == 3 + _parafac2_sweep.BEYOND
    assert max(narrow.slices.heights) <= max(narrow.slices.columns, 14)
    assert narrow.slices.norm == pytest.approx(sum(float(x.norm()) ** 2 for x in slices))
    assert Narrow.of(Slices([x[:, :30] for x in slices], 3)) is None


@pytest.mark.parametrize("seed", range(3))
def test_what_begins_there_ends_no_higher_in_fewer_sweeps(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, slices = planted(ROWS, 60, 3, seed=10 * seed, noise=0.05)
    fit = fit_parafac2(slices, 3)
    monkeypatch.setattr(_parafac2_sweep, "WORTH", 60)
    plain = fit_parafac2(slices, 3)
    assert fit.error <= plain.error * (1 + 1e-4)
    assert len(fit.errors) < len(plain.errors)
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(fit.errors[:-1]))
    assert is_orthonormal(fit.factors, 1e-10)
    near, as_near = (congruence(f.factors.factors[2], model.factors[2])[0] for f in (fit, plain))
    assert near > as_near - 1e-3


def test_an_exact_model_is_met_and_restarts_are_tried_there() -> None:
    _, slices = planted(ROWS, 60, 3)
    assert fit_parafac2(slices, 3, tol=1e-9).error < 1e-6
    drawn = fit_parafac2(slices, 3, init="random", n_restarts=2, random_state=0)
    assert drawn.error < 1e-2
    zero = fit_parafac2([torch.zeros_like(x) for x in slices], 3)
    assert zero.error < 1e-15  # absolute, and rounding
