"""Starts from singular vectors: parts of one sign, better than chance, the same every time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tensorlrf.decomposition import fit_nmf, fit_nonnegative_cp, nmf
from tensorlrf.decomposition.nonnegative._data import Data
from tensorlrf.decomposition.nonnegative._leading import leading_columns
from tests.decomposition.nonnegative.checks import never_rises, none_negative, planted, uniform
from tests.draws import generator, seeded


def test_of_a_matrix_a_pair_keeps_parts_of_one_sign() -> None:
    """As the definition has it: the larger of both positive and both negative parts."""
    x = uniform(12, 9)
    left, right = leading_columns(Data.of(x), (4, 4), generator())
    u, _, vt = torch.linalg.svd(x, full_matrices=False)
    for j in range(4):
        pairs = [(s * u[:, j], s * vt[j]) for s in (1, -1)]
        parts = [(a.clamp_min(0), b.clamp_min(0)) for a, b in pairs]
        a, b = max(parts, key=lambda pair: float(pair[0].norm() * pair[1].norm()))
        # float64, by another routine: rounding over the gaps between singular values.
        assert torch.allclose(left[:, j], a / a.norm(), rtol=0, atol=1e-12)
        assert torch.allclose(right[:, j], b / b.norm(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("ranks", [(2, 2, 2), (5, 9, 3)])
def test_columns_have_unit_length_and_no_negative_entry(ranks: tuple[int, ...]) -> None:
    """Also beyond the size of a mode, and of data without any direction."""
    for x in (seeded(5, 6, 3), torch.zeros(5, 6, 3).double()):
        found = leading_columns(Data.of(x), ranks, generator())
        for u, n, r in zip(found, x.shape, ranks, strict=True):
            assert u.shape == (n, r)
            assert (u >= 0).all()
            assert torch.allclose(u.norm(dim=0), torch.ones(r).double())


@pytest.mark.parametrize("shape", [(30, 20), (240, 180), (9, 8, 7), (40, 30, 24)])
@pytest.mark.parametrize("loss", ["frobenius", "kl"])
def test_it_begins_nearer_than_chance(shape: tuple[int, ...], loss: str) -> None:
    x = planted(shape, 3).to_dense() + 0.1 * uniform(*shape)
    fit: Any = fit_nmf if len(shape) == 2 else fit_nonnegative_cp
    options = {"loss": loss} if len(shape) == 2 else {}
    one, drawn = (fit(x, 3, init=init, random_state=0, **options) for init in ("svd", "random"))
    assert never_rises(one.errors)
    assert none_negative(one)
    assert one.errors[0] <= drawn.errors[0] * (1 + 1e-3)
    assert one.error <= drawn.error * 1.05
    if max(shape) < 40:
        again = fit(x, 3, init="svd", random_state=5, **options)
        assert again.errors == one.errors


def test_others_beside_it_are_random() -> None:
    x = planted((20, 15), 4).to_dense() + 0.3 * uniform(20, 15, seed=7)
    several = nmf(x, 4, init="svd", n_restarts=3, random_state=0).rel_error(x)
    assert several <= nmf(x, 4, init="svd").rel_error(x) * (1 + 1e-3)
