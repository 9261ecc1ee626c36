"""Relative errors over the whole range of the dtypes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorlrf.factors import LowRank
from tensorlrf.factors.algebra import relative_residual
from tests.draws import seeded


@settings(derandomize=True, deadline=None, max_examples=60)
@given(exponent=st.integers(-1000, 1015), off=st.sampled_from([1e-15, 1e-6, 0.3, 2.0]))
def test_a_power_of_two_changes_nothing(exponent: int, off: float) -> None:
    tensor = seeded(7, 5)
    other = tensor + off * seeded(7, 5, seed=1)
    residual, norm = relative_residual(tensor, other)
    # 2^exponent itself may be beyond what one multiplication can do.
    scaled = [torch.ldexp(t, torch.tensor(exponent)) for t in (tensor, other)]
    far, whole = relative_residual(*scaled)
    assert far / whole == pytest.approx(residual / norm, rel=1e-12)
    if abs(exponent) < 900:
        assert whole == pytest.approx(math.ldexp(norm, exponent), rel=1e-12)
        assert far == pytest.approx(math.ldexp(residual, exponent), rel=1e-12)


@pytest.mark.parametrize("scale", [1e200, 1e-200, 1e307, 1e-307])
def test_rel_error_of_factors(scale: float) -> None:
    root = math.sqrt(scale)
    left, right = seeded(9, 2), seeded(2, 8, seed=1)
    matrix = seeded(9, 8, seed=2)
    expected = LowRank(left, right, (9, 8)).rel_error(matrix)
    far = LowRank(left * root, right * root, (9, 8))
    assert far.rel_error(matrix * scale) == pytest.approx(expected, rel=1e-9)
    # Against zero the error is absolute.
    if abs(math.log10(scale)) < 300:
        size = float((left @ right).norm())
        zero = torch.zeros(9, 8, dtype=torch.float64)
        assert far.rel_error(zero) == pytest.approx(size * scale, rel=1e-9)
    assert LowRank(0 * left, right, (9, 8)).rel_error(torch.zeros(9, 8)) == 0.0


def test_what_is_not_finite_stays_so() -> None:
    tensor = seeded(3, 4)
    broken = tensor.clone()
    broken[0, 0] = math.nan
    assert math.isnan(relative_residual(tensor, broken)[0])
    assert math.isnan(relative_residual(broken, tensor)[1])
