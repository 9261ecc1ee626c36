"""Sizes of digits: balanced, with as little padding as that allows."""

from __future__ import annotations

import math
from itertools import combinations_with_replacement
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorlrf.decomposition.sizes import matrix_sizes, mode_sizes
from tensorlrf.errors import ArgumentError, ShapeError


def good(n: int, order: int, bound: float) -> list[tuple[int, ...]]:
    """Every descending factorisation of n with parts up to `bound`, by trial."""
    parts = [p for p in range(1, math.floor(bound) + 1) if n % p == 0]
    found = combinations_with_replacement(reversed(parts), order)
    return [sizes for sizes in found if math.prod(sizes) == n]


@settings(derandomize=True, deadline=None, max_examples=30)
@given(n=st.integers(1, 400), order=st.integers(1, 4))
def test_the_least_padding_that_has_a_good_factorisation(n: int, order: int) -> None:
    sizes = mode_sizes(n, order)
    bound = 2 * n ** (1 / order) + 1e-9
    padded = math.prod(sizes)
    assert len(sizes) == order
    assert list(sizes) == sorted(sizes, reverse=True)
    assert sizes == min(good(padded, order, bound))
    assert not any(good(k, order, bound) for k in range(n, padded))


@pytest.mark.parametrize(
    ("n", "order", "sizes"),
    [
        (768, 3, (12, 8, 8)),
        (4096, 3, (16, 16, 16)),
        (97, 2, (14, 7)),
        (1, 2, (1, 1)),
        (1536, 3, (16, 12, 8)),
    ],
)
def test_known_sizes(n: int, order: int, sizes: tuple[int, ...]) -> None:
    assert mode_sizes(n, order) == sizes


def test_both_sides_get_equally_many() -> None:
    assert matrix_sizes(768, 3072, None, None, None) == ((12, 8, 8), (16, 16, 12))
    assert matrix_sizes(64, 30, (8, 8), None, None) == ((8, 8), (6, 5))
    assert matrix_sizes(64, 30, None, (2, 3, 5), 3) == ((4, 4, 4), (2, 3, 5))
    assert matrix_sizes(2, 2, None, None, None) == ((2, 1), (2, 1))


def test_refusals_list_what_is_possible() -> None:
    with pytest.raises(ShapeError, match=r"row_sizes=\(7, 9\) multiply to 63.* 64 .*\(8, 8\)"):
        matrix_sizes(64, 30, (7, 9), None, None)
    with pytest.raises(ShapeError, match=r"column_sizes=\(5, 5\).*\(6, 5\)"):
        matrix_sizes(64, 30, None, (5, 5), None)
    with pytest.raises(ShapeError, match=r"differ in length.*\(8, 8\).*\(6, 5\)"):
        matrix_sizes(64, 30, (8, 8), (2, 3, 5), None)
    with pytest.raises(ShapeError, match="order=4 differ"):
        matrix_sizes(64, 30, (8, 8), None, 4)
    with pytest.raises(ArgumentError, match="give two at least"):
        matrix_sizes(64, 30, (64,), None, None)
    fraction: Any = (8, 8.0)
    with pytest.raises(ArgumentError, match="row_sizes"):
        matrix_sizes(64, 30, fraction, None, None)
    number: Any = 8
    with pytest.raises(ArgumentError, match=r"row_sizes=8 must be a sequence, such as \(8, 8\)"):
        matrix_sizes(64, 30, number, None, None)
    with pytest.raises(ArgumentError, match=r"column_sizes=8 must be a sequence, such as \(6, 5\)"):
        matrix_sizes(64, 30, (8, 8), number, None)
    pairs: list[Any] = [(0, 2), (4, 0), (True, 2), (4, 2.0)]
    for n, order in pairs:
        with pytest.raises(ArgumentError, match="int of at least 1"):
            mode_sizes(n, order)
