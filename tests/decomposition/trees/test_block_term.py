"""Block terms: planted terms are found, and no sweep raises the loss."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorlrf
from tensorlrf.decomposition import fit_block_term
from tensorlrf.errors import ArgumentError, RankError, ShapeError
from tensorlrf.factors import BlockTerm
from tests.draws import seeded


def planted_ll1() -> BlockTerm:
    """Three matrices (9, 8) of rank 2 times vectors (7,)."""
    return BlockTerm(seeded(3, 2, 8, 1), (seeded(3, 9, 2, seed=1), seeded(3, 7, 1, seed=2)), (0, 2))


def test_planted_terms_of_a_matrix_and_a_vector_are_found() -> None:
    planted = planted_ll1()
    tensor = planted.to_dense()
    options: dict[str, Any] = {"n_restarts": 8, "random_state": 0, "tol": 1e-9, "n_iter_max": 1000}
    fit = fit_block_term(tensor, 2, n_terms=3, form="ll1", **options)
    assert fit.error < 1e-6
    assert fit.factors.rel_error(tensor) == pytest.approx(fit.error, abs=1e-12)
    left = list(planted.terms())
    for found in fit.factors.terms():  # each of them is one of those planted
        offs = [found.rel_error(true.to_dense()) for true in left]
        assert min(offs) < 1e-4
        left.pop(offs.index(min(offs)))


def test_planted_full_terms_are_fitted() -> None:
    """Terms in subspaces of their own."""
    bases = [torch.linalg.qr(seeded(n, 4, seed=n))[0] for n in (6, 7, 5)]
    factors = tuple(basis.reshape(-1, 2, 2).transpose(0, 1) for basis in bases)
    tensor = BlockTerm(seeded(2, 2, 2, 2), factors).to_dense()
    fit = fit_block_term(tensor, 2, n_terms=2, n_restarts=5, random_state=0, tol=1e-9)
    assert fit.error < 1e-6
    one = fit_block_term(tensor, 2, n_terms=1, random_state=0)
    assert one.error > fit.error


def test_one_term_is_a_tucker_tensor() -> None:
    tensor = seeded(6, 5, 4)
    fit = fit_block_term(tensor, (3, 2, 2), n_terms=1, random_state=0, n_restarts=3, tol=1e-9)
    tucker = tensorlrf.decomposition.fit_tucker(tensor, (3, 2, 2), tol=1e-9, n_iter_max=500)
    assert fit.error == pytest.approx(tucker.error, rel=1e-2)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=3, max_size=4),
    rank=st.integers(1, 3),
    n_terms=st.integers(1, 3),
    kind=st.sampled_from(["noise", "zero", "rank one"]),
)
def test_the_loss_never_rises(sizes: list[int], rank: int, n_terms: int, kind: str) -> None:
    tensor = seeded(*sizes)
    if kind == "zero":
        tensor = 0 * tensor
    elif kind == "rank one":
        tensor = torch.ones_like(tensor)
    forms = ("full", "ll1") if len(sizes) == 3 else ("full",)
    for form in forms:
        options: dict[str, Any] = {"n_terms": n_terms, "form": form, "random_state": 0}
        fit = fit_block_term(tensor, rank, n_iter_max=8, **options)
        assert all(b <= a * (1 + 1e-9) + 1e-15 for a, b in pairwise(fit.errors[:-1]))
        assert fit.error <= 1 + 1e-12


def test_a_callback_sees_each_sweep_and_stops() -> None:
    seen: list[float] = []

    def stop(factors: BlockTerm, error: float) -> bool:
        assert factors.rank == (2, 2, 2)
        seen.append(error)
        return len(seen) == 2

    fit = fit_block_term(seeded(4, 5, 3), 2, callback=stop, tol=0.0, random_state=0)
    assert len(seen) == 2
    assert "stopped by callback" in fit.reason


def test_bad_input_is_told() -> None:
    tensor = seeded(4, 5, 3)

    def refused(kind: Any, words: str, rank: Any = 2, weight: Any = tensor, **options: Any) -> None:
        with pytest.raises(kind, match=words):
            fit_block_term(weight, rank, **options)

    refused(RankError, r"asks for rank 5 along mode 0, which allows 4", (5, 2, 2))
    refused(RankError, r"has 2 entries; terms of form 'full' .* have 3", (2, 2))
    refused(RankError, r"has 2 entries; terms of form 'll1' .* have 1", (2, 2), form="ll1")
    refused(ArgumentError, "n_terms=0 must", n_terms=0)
    refused(ArgumentError, "form='odd' is unknown; choose one of full, ll1", form="odd")
    refused(ShapeError, "form='ll1' is for three modes", weight=seeded(3, 4), form="ll1")
