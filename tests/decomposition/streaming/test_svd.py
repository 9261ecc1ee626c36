"""Incremental SVD: what the batch SVD is where nothing is cut, and a known error where it is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf import IncrementalSVD
from tensorlrf.errors import ArgumentError, RankError, ShapeError
from tests.draws import seeded
from tests.laws.refusals import not_dense


def streamed(matrix: Tensor, sizes: list[int], **options: Any) -> IncrementalSVD:
    stream = IncrementalSVD(**options)
    for rows in matrix.split(sizes):
        stream.update(rows)
    return stream


@settings(max_examples=10, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=6), n=st.integers(1, 6))
def test_it_is_the_batch_svd_where_nothing_is_cut(sizes: list[int], n: int) -> None:
    matrix = seeded(sum(sizes), n, seed=n)
    stream = streamed(matrix, sizes, rank=n)
    assert stream.bound < 1e-12
    assert stream.factors.rel_error(matrix) < 1e-13
    values = torch.linalg.svdvals(matrix)
    torch.testing.assert_close(stream.singular_values[: len(values)], values)
    left = stream.factors.left
    torch.testing.assert_close(left.T @ left, torch.eye(left.shape[1], dtype=left.dtype))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    rank=st.integers(1, 4),
    kind=st.sampled_from(["noise", "decay", "zero", "one row again and again"]),
)
def test_the_bound_is_the_error_at_any_time(sizes: list[int], rank: int, kind: str) -> None:
    matrix = seeded(sum(sizes), 8)
    if kind == "decay":
        matrix = matrix * 0.4 ** torch.arange(8, dtype=torch.float64)
    elif kind == "zero":
        matrix = 0 * matrix
    elif kind == "one row again and again":
        matrix = matrix[:1].expand_as(matrix)
    stream, seen = IncrementalSVD(rank), 0
    for u, rows in enumerate(matrix.split(sizes), 1):
        stream.update(rows)
        seen += len(rows)
        off = float((matrix[:seen] - stream.factors.to_dense()).norm())
        assert off == pytest.approx(stream.bound, rel=1e-8, abs=1e-12)
        best = float(torch.linalg.svdvals(matrix[:seen])[rank:].norm())
        assert best - 1e-12 <= off <= math.sqrt(u) * best + 1e-12
    assert stream.n_rows == seen


def test_an_error_is_kept_after_every_update() -> None:
    matrix = seeded(60, 20) * 0.7 ** torch.arange(20, dtype=torch.float64)
    stream, seen = IncrementalSVD(error=0.1), 0
    for rows in matrix.split(9):
        stream.update(rows)
        seen += len(rows)
        assert stream.factors.rel_error(matrix[:seen]) <= 0.1
        assert stream.rel_error <= 0.1
    assert 1 < stream.factors.rank < 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_shorter_dtypes_and_of_arrays(dtype: torch.dtype) -> None:
    matrix = (seeded(40, 6) @ seeded(6, 12, seed=1)).to(dtype)
    stream = streamed(matrix, [10] * 4, rank=6)
    assert stream.factors.dtype == dtype
    assert stream.factors.to(torch.float32).rel_error(matrix) < 8 * torch.finfo(dtype).eps
    arrays = IncrementalSVD(4)
    for rows in np.split(matrix.double().numpy(), 4):
        arrays.update(rows)
    assert torch.allclose(
        arrays.factors.to_dense(), streamed(matrix.double(), [10] * 4, rank=4).factors.to_dense()
    )


def test_to_look_changes_nothing() -> None:
    matrix = seeded(30, 7)
    plain = streamed(matrix, [6] * 5, rank=3)
    stream = IncrementalSVD(3)
    for rows in matrix.split(6):
        stream.update(rows)
        assert stream.factors is stream.factors
    torch.testing.assert_close(stream.factors.to_dense(), plain.factors.to_dense())


def test_bad_rows_are_told_and_change_nothing() -> None:
    stream = IncrementalSVD(2)
    with pytest.raises(ArgumentError, match="no rows yet"):
        _ = stream.factors
    good = seeded(5, 4, dtype=torch.float32)
    stream.update(good)
    before = stream.factors

    def refused(kind: Any, words: str, rows: Any) -> None:
        with pytest.raises(kind, match=words):
            stream.update(rows)
        assert stream.factors is before
        assert stream.n_rows == 5

    refused(ShapeError, r"rows has shape \(5, 3\), those before have 4 columns", good[:, :3])
    refused(
        ArgumentError, "rows is torch.float64 on cpu, those before are torch.float32", good.double()
    )
    refused(ShapeError, r"rows has shape \(5, 2, 2\)", good.reshape(5, 2, 2))
    for value, words in not_dense(good).values():
        words = words.rpartition("sparse_coo; ")[2].rpartition("sparse_csr; ")[2]
        refused(ArgumentError, f"^rows .*{words}", value)
    for options, words in (
        ({"rank": 0}, "rank=0 must"),
        ({"rank": 1.5}, "rank=1.5 must"),
        ({"rank": "same"}, "rank='same' must"),
        ({}, "give rank or error"),
        ({"rank": 2, "error": 0.1}, "give rank or error"),
        ({"error": 1.5}, "error=1.5"),
    ):
        with pytest.raises(ArgumentError, match=words):
            IncrementalSVD(**options)  # type: ignore[arg-type]  # what is refused
    with pytest.raises(RankError, match="rank=9 is above 4, the width of rows"):
        IncrementalSVD(9).update(good)
