"""Leading eigenvectors of a matrix whose eigenvalues are known."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorlrf
from tensorlrf.decomposition.linalg import _leading, _spectrum
from tensorlrf.decomposition.linalg._gram import descending_eigh
from tensorlrf.decomposition.linalg._leading import (
    allowed,
    filter_for,
    leading_eigenvectors,
    leading_eigh,
)

N = 256


def semidefinite(values: torch.Tensor, seed: int) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    n = len(values)
    basis = torch.linalg.qr(torch.randn(n, n, generator=draws, dtype=torch.float64))[0]
    return (basis * values) @ basis.T


def spectrum(kind: str, n: int) -> torch.Tensor:
    """Descending, of a Gram."""
    k = torch.arange(n, dtype=torch.float64)
    return {
        "flat": 4 * (1 - (k / n) ** (2 / 3)) + 1e-3,
        "falling": 1 / (1 + k),
        "steep": torch.exp(-k / 5),
        "all equal": torch.ones(n, dtype=torch.float64),
        "a cluster across the rank": torch.where(k < 40, 1.0, 0.25),
        "of low rank": (k < 9).to(torch.float64),
        "a head": torch.where(k < 3, 1e6, 1.0) * (1 - 0.9 * k / n),
        "zero": torch.zeros(n, dtype=torch.float64),
    }[kind]


KINDS = [
    "flat", "falling", "steep", "all equal", "a cluster across the rank", "of low rank", "a head",
    "zero",
]  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    r=st.integers(1, 16),
    size=st.integers(-60, 60),
    seed=st.integers(0, 99),
)
def test_the_vectors_capture_the_eigenvalues_and_diagonalise(
    kind: str, r: int, size: int, seed: int
) -> None:
    gram = semidefinite(spectrum(kind, N) * 2.0**size, seed)
    values, _ = descending_eigh(gram)
    vectors = leading_eigenvectors(gram, values.numpy(), r)
    if vectors is None:
        return
    assert vectors.shape == (N, r)
    rounding = 64 * N * torch.finfo(torch.float64).eps
    assert float((vectors.T @ vectors - torch.eye(r, dtype=torch.float64)).abs().max()) < rounding
    inner = vectors.T @ gram @ vectors
    missed = float(values[:r].sum() - inner.trace())
    assert missed <= allowed(values.numpy(), r) + rounding * float(values[0])
    assert float((inner - inner.diagonal().diag()).abs().max()) <= rounding * float(values[0])
    found = inner.diagonal()
    assert bool((found.diff() <= rounding * float(values[0])).all())


@pytest.mark.parametrize("kind", ["flat", "falling", "steep"])
@pytest.mark.parametrize("r", [8, 64, 128])
def test_spectra_that_weights_have_are_worth_a_filter(kind: str, r: int) -> None:
    found = filter_for(spectrum(kind, 2048).numpy(), r)
    assert found is not None
    assert r < found.bound < found.width


@pytest.mark.parametrize("kind", ["flat", "falling", "steep"])
def test_the_degree_that_follows_suffices(kind: str) -> None:
    gram = semidefinite(spectrum(kind, N), 3)
    for r in (1, 4, 12):
        assert leading_eigenvectors(gram, descending_eigh(gram)[0].numpy(), r) is not None


def test_a_spectrum_that_no_filter_parts_takes_the_full_decomposition() -> None:
    assert filter_for(spectrum("zero", 2048).numpy(), 16) is None
    assert filter_for(spectrum("a head", 2048).numpy(), 16) is None


def test_what_misses_too_much_is_not_taken() -> None:
    gram = semidefinite(spectrum("flat", N), 0)
    values = descending_eigh(gram)[0]
    with mock.patch.object(_leading, "filter_for", return_value=_leading.Filter(16, 12, 1, 1)):
        assert leading_eigenvectors(gram, values.numpy(), 8) is None
    with (
        mock.patch.object(_leading, "SMALLEST", 1),
        mock.patch.object(_leading, "leading_eigenvectors", return_value=None),
    ):
        assert leading_eigh(gram, 8)[1].shape == (N, N)


@pytest.mark.parametrize("shape", [(256, 300), (300, 256)])
def test_a_truncation_by_eigenvectors_is_as_near_as_by_all(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    before = torch.get_rng_state()
    with (
        mock.patch.object(_leading, "SMALLEST", 1),
        mock.patch.object(_spectrum, "leading_eigh", wraps=leading_eigh) as called,
    ):
        factors = tensorlrf.svd(weight, 8, solver="eigh")
    gram, r = called.call_args.args
    assert r == 8
    assert gram.shape == (256, 256)
    best = torch.linalg.svdvals(weight.to(torch.float64))[8:].square().sum().sqrt()
    got = torch.linalg.vector_norm(weight.to(torch.float64) - factors.to(torch.float64).to_dense())
    assert float(got / best) <= 1 + 4 * torch.finfo(torch.float32).eps
    assert torch.equal(before, torch.get_rng_state())


@settings(max_examples=30, deadline=None)
@given(r=st.integers(1, 128), fall=st.floats(0, 3))
def test_a_filter_leaves_what_is_allowed_in_its_own_estimate(r: int, fall: float) -> None:
    values = np.arange(1.0, 2049.0) ** -fall
    found = filter_for(values, r)
    if found is not None:
        assert 1 <= found.rounds <= _leading.MOST
        assert found.degree >= 1
        assert r < found.bound < found.width < 2048
