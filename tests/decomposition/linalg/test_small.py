"""Small matrices on the host, by numpy and by torch: the same spectra."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorlrf.decomposition.linalg import _small
from tensorlrf.decomposition.linalg._small import (
    Small,
    eigenvalues,
    leading,
    on_host,
    short_gram,
    truncated,
)


def drawn(m: int, n: int, rank: int, seed: int) -> Small:
    draws = np.random.default_rng(seed)
    matrix: Small = draws.standard_normal((m, rank)) @ draws.standard_normal((rank, n))
    return matrix


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    m=st.sampled_from([1, 5, 40, 90]),
    n=st.sampled_from([1, 6, 40, 100]),
    rank=st.sampled_from([0, 3, 100]),
    r=st.sampled_from([1, 3, 40]),
    roughly=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_truncation_is_the_nearest_whatever_its_size(
    m: int, n: int, rank: int, r: int, roughly: bool, seed: int
) -> None:
    matrix = drawn(m, n, rank, seed)
    r = min(r, m, n)
    left, values, right = truncated(matrix, r, roughly=roughly)
    exact = np.linalg.svd(matrix, compute_uv=False)
    near = 1e-7 * (float(exact[0]) or 1.0)
    assert (left.shape, values.shape, right.shape) == ((m, r), (r,), (r, n))
    assert values == pytest.approx(exact[:r], abs=near)
    least = float(np.linalg.norm(exact[r:]))
    assert np.linalg.norm(matrix - (left * values) @ right) <= least + r * near
    gram = short_gram(matrix)
    assert len(gram) == min(m, n)
    assert eigenvalues(gram) == pytest.approx(exact**2, abs=1e-12 * float(exact[0] ** 2) + 1e-12)
    vectors = leading(gram, r)
    assert vectors.T @ vectors == pytest.approx(np.eye(r), abs=1e-12)


def test_where_lapack_gives_up_torch_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    def gives_up(*_: object, **__: object) -> None:
        raise np.linalg.LinAlgError("no convergence")

    matrix = drawn(12, 9, 9, 0)
    usual, vectors = truncated(matrix, 4, roughly=False), leading(short_gram(matrix), 4)
    monkeypatch.setattr(np.linalg, "svd", gives_up)
    monkeypatch.setattr(np.linalg, "eigh", gives_up)
    for roughly in (False, True):
        left, values, right = truncated(matrix, 4, roughly=roughly)
        expected = (usual[0] * usual[1]) @ usual[2]
        assert (left * values) @ right == pytest.approx(expected, abs=1e-10)
    again = leading(short_gram(matrix), 4)
    assert again @ again.T == pytest.approx(vectors @ vectors.T, abs=1e-10)


def test_numpy_has_what_one_thread_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever numpy is asked for is below a bound of work."""
    asked: list[float] = []
    for name in ("svd", "eigh", "eigvalsh"):
        real = getattr(np.linalg, name)

        def noted(
            matrix: Small, *rest: object, real: Callable[..., Any] = real, **more: object
        ) -> object:
            asked.append(matrix.size * min(matrix.shape))
            return real(matrix, *rest, **more)

        monkeypatch.setattr(np.linalg, name, noted)
    for side in (8, 63, 64, 200):
        matrix = drawn(side, side + 8, 4, 0)
        truncated(matrix, 4, roughly=False)
        eigenvalues(short_gram(matrix))
        leading(short_gram(matrix), 4)
    assert asked
    assert max(asked) < _small.LIGHT


def test_what_comes_to_the_host_is_a_copy() -> None:
    matrix = torch.ones(2, 3)
    on_host(matrix)[:] = 0
    wide = matrix.double()
    on_host(wide)[:] = 0
    assert bool((matrix == 1).all())
    assert bool((wide == 1).all())
