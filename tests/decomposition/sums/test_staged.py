"""Stages of residuals: plain ones are one SVD, and others pay where they differ."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorlrf
from tensorlrf.decomposition import fit_staged, fit_svd
from tensorlrf.errors import ArgumentError, RankError
from tensorlrf.factors import KroneckerSum, LowRank, Quantized
from tests.draws import seeded
from tests.metrics import second_moments


@given(st.integers(1, 4), st.integers(0, 3), st.booleans(), st.integers(0, 99))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_plain_stages_equal_one_svd_of_the_summed_rank(
    count: int, more: int, metric: bool, seed: int
) -> None:
    """In the sum of squares and in the metric of inputs; the whole is the same matrix."""
    w, rank = seeded(14, 11, seed=seed), count + more
    data = {"gram": second_moments(seeded(11, 60, seed=seed + 1))} if metric else {}
    staged = fit_staged(w, rank, stages=("svd",) * count, **data)
    one = fit_svd(w, rank, **data)
    assert staged.error == pytest.approx(one.error, rel=1e-6, abs=1e-9)
    torch.testing.assert_close(
        staged.factors.to_dense(), one.factors.to_dense(), rtol=1e-6, atol=1e-6
    )
    assert staged.factors.n_params == one.factors.n_params
    assert all(b <= a + 1e-12 for a, b in pairwise(staged.errors))


def test_they_do_where_a_rank_is_small_and_the_spectrum_flat() -> None:
    """There a sketch would serve an SVD by itself, and lose a little in every stage."""
    w = seeded(640, 600, dtype=torch.float32)
    staged, one = tensorlrf.staged(w, 9, stages=("svd",) * 9), tensorlrf.svd(w, 9, solver="exact")
    assert staged.rel_error(w) == pytest.approx(one.rel_error(w), rel=1e-6)


def test_stages_in_few_bits_make_good_what_was_rounded() -> None:
    w = seeded(40, 30, dtype=torch.float32)
    one = Quantized.encode(tensorlrf.svd(w, 12), "int4")
    staged = fit_staged(w, 12, stages=("svd:int4",) * 3)
    again = fit_staged(w, 12, stages=("svd:int4",) * 3, n_iter_max=5)
    assert again.error <= staged.error < one.rel_error(w)
    assert all(b <= a for a, b in pairwise(again.errors[:-1]))


def test_formats_that_see_different_things() -> None:
    mixed = torch.kron(seeded(5, 6), seeded(6, 4)) + seeded(30, 2) @ seeded(2, 24, seed=1)
    # Alone, neither a Kronecker product nor a low rank of as many numbers is near.
    fit = fit_staged(mixed, (1, 2), stages=("kron", "svd"), n_iter_max=30, tol=0.0)
    kron, low = fit.factors.parts
    assert isinstance(kron, KroneckerSum)
    assert isinstance(low, LowRank)
    share = fit.factors.n_params / mixed.numel()
    assert fit.error < 0.5 * min(tensorlrf.svd(mixed, share).rel_error(mixed), 1.0)


def test_refuses_by_name() -> None:
    w = seeded(8, 6)
    for stages, words in (
        ((), r"stages=\(\) must be a tuple"),
        ("svd", "stages='svd' must be a tuple"),
        (("svd", "odd"), "stages='odd' is unknown"),
        (("svd:int3",), "'svd:int3'; behind the colon"),
        (("lplr:int8",), "'lplr:int8'; behind the colon"),
        (("svd", "staged"), "'staged', which gives a sum itself"),
    ):
        with pytest.raises(ArgumentError, match=words):
            fit_staged(w, 4, stages=stages)
    with pytest.raises(RankError, match=r"rank=\(1, 2, 3\) has 3 entries for 2 stages"):
        fit_staged(w, (1, 2, 3))
    with pytest.raises(RankError, match="rank=1 is below the number of stages, 2"):
        fit_staged(w, 1)
