"""Coupled factorisation beside tensorly's: what its own test asks for, and its error at the end."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from tensorlrf.decomposition import fit_coupled_factorization

pytest.importorskip("tensorly")
from tensorly.decomposition._cmtf_als import (  # where tensorly is there
    coupled_matrix_tensor_3d_factorization,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("sizes", "noise"), [((21, 12, 16, 14), 0.0), ((40, 30, 20, 25), 0.05)])
def test_fits_a_tensor_and_a_matrix_no_worse(sizes: tuple[int, ...], noise: float) -> None:
    draws = np.random.RandomState(1234)
    a, b, c, v = (draws.rand(n, 3) for n in sizes)
    x, y = np.einsum("ir,jr,kr->ijk", a, b, c), a @ v.T
    x = x + noise * x.std() * draws.standard_normal(x.shape)
    y = y + noise * y.std() * draws.standard_normal(y.shape)
    fit = fit_coupled_factorization([x, y], 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its sweeps ran out
        _, _, errors = coupled_matrix_tensor_3d_factorization(x, y, 3)
    whole = float(np.square(x).sum() + np.square(y).sum())
    assert fit.error <= math.sqrt(float(errors[-1]) / whole) * 1.0001
    assert np.all(np.diff(fit.errors[:-1]) <= 1e-12)
    left = np.abs(fit.factors[0].to_dense().numpy() - x).max()
    assert left + np.abs(fit.factors[1].to_dense().numpy() - y).max() < 0.1 + 8 * noise
