"""Robust PCA finds a low rank and entries that spoil it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tensorlrf
from tensorlrf.decomposition import fit_robust_pca
from tensorlrf.errors import ArgumentError
from tensorlrf.factors import Composite, LowRank, SparseTensor
from tests.draws import generator, seeded


def planted(m: int, n: int, r: int, seed: int, share: float = 0.04) -> tuple[Tensor, Tensor]:
    """The two parts."""
    low = seeded(m, r, seed=seed) @ seeded(r, n, seed=seed + 1)
    at = torch.randperm(m * n, generator=generator(seed + 2))[: round(share * m * n)]
    sparse = torch.zeros(m * n, dtype=torch.float64)
    sparse[at] = 10 * seeded(len(at), seed=seed + 3)
    return low, sparse.view(m, n)


@given(
    st.integers(40, 60), st.integers(40, 60), st.integers(1, 2), st.integers(0, 99),
    st.sampled_from([(torch.float64, 1e-5), (torch.float32, 1e-4)]),
)  # fmt: skip
@settings(max_examples=12, deadline=None, derandomize=True)
def test_finds_both_parts(
    m: int, n: int, r: int, seed: int, digits: tuple[torch.dtype, float]
) -> None:
    """In float64 to 1e-5, in float32 to what 1e-6 of the whole leaves of the smaller part."""
    dtype, least = digits
    low, sparse = planted(m, n, r, seed)
    fit = fit_robust_pca((low + sparse).to(dtype))
    found, entries = fit.factors.parts
    assert isinstance(found, LowRank)
    assert isinstance(entries, SparseTensor)
    assert fit.converged
    assert found.rank == r
    assert found.rel_error(low) < least
    assert entries.rel_error(sparse) < least


def test_takes_arrays_and_scales() -> None:
    low, sparse = planted(50, 40, 2, 7)
    usual = tensorlrf.robust_pca(low + sparse)
    for scale in (2.0**-60, 2.0**60):
        f = tensorlrf.robust_pca((low + sparse).numpy() * scale)
        assert f.rank == usual.rank
        np.testing.assert_allclose(f.to_dense() / scale, usual.to_dense(), rtol=0, atol=1e-9)


def test_degenerate_matrices_stay_finite() -> None:
    for w in (torch.zeros(6, 5), torch.ones(6, 5), torch.eye(6), torch.full((1, 4), 3.0)):
        f = tensorlrf.robust_pca(w)
        assert bool(f.to_dense().isfinite().all())
        assert float((f.to_dense() - w).norm()) <= 1e-5 * float(w.norm()) + 1e-12


def test_a_callback_ends_it() -> None:
    low, sparse = planted(50, 40, 2, 7)
    seen: list[float] = []

    def watch(factors: Composite, error: float) -> bool:
        seen.append(error)
        return len(seen) == 4

    fit = fit_robust_pca(low + sparse, callback=watch)
    assert len(fit.errors) == 5
    assert fit.reason == "stopped by callback after iteration 4"
    assert not fit.converged
    with pytest.raises(ArgumentError, match="callback=3"):
        fit_robust_pca(low, callback=3)  # type: ignore[arg-type]


def test_refuses_by_name() -> None:
    w = seeded(6, 5)
    for weight in (0, -1.0, float("nan"), True, "much"):
        with pytest.raises(ArgumentError, match=r"weight=.* must be a number above zero"):
            fit_robust_pca(w, weight=weight)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="n_iter_max=0"):
        fit_robust_pca(w, n_iter_max=0)
    for bad, words in ((w / 0, "Inf"), (w.long(), "int64"), (w[0], "modes"), (w + 0j, "imaginary")):
        with pytest.raises(ArgumentError, match=f"^tensor.*{words}"):
            fit_robust_pca(bad)
