"""Norms, distances and orthogonal forms of trains, and functions of their entries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tensorlrf.decomposition import (
    fit_tt_elementwise,
    tt_add,
    tt_distance,
    tt_elementwise,
    tt_inner,
    tt_norm,
    tt_orthogonalize,
)
from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import TTFactors, TTMatrix
from tests.draws import seeded


def train(seed: int = 0, modes: tuple[int, ...] = ()) -> TTFactors:
    sizes = ((1, 4, 3), (3, 5, 4), (4, 3, 2), (2, 6, 1))
    return TTFactors(tuple(seeded(*s, seed=seed + k) for k, s in enumerate(sizes)), modes)


def near(f: TTFactors, size: float) -> TTFactors:
    """What differs from it by about that much of its norm."""
    off = train(7).map(lambda c: c * size**0.25)
    return tt_add(f, off)


@pytest.mark.parametrize("size", [1.0, 1e-6, 1e-10])
def test_distances_are_those_of_the_whole_where_squares_cancel(size: float) -> None:
    f = train()
    g = near(f, size)
    whole = f.to_dense()
    expected = float((whole - g.to_dense()).norm())
    assert abs(tt_distance(f, g) - expected) < 1e-12 * float(whole.norm())
    squared = tt_inner(f, f) - 2 * tt_inner(f, g) + tt_inner(g, g)
    if size < 1e-8:  # what it is there for
        assert abs(float(squared.clamp(min=0).sqrt()) - expected) > 0.1 * expected
    assert tt_distance(f, f) < 1e-12 * float(whole.norm())


def test_norms_are_those_of_the_whole_at_any_scale() -> None:
    f = train()
    assert tt_norm(f) == pytest.approx(float(f.to_dense().norm()), rel=1e-13)
    large = f.map(lambda c: c * 1e60)  # whose square overflows
    assert tt_norm(large) == pytest.approx(1e240 * tt_norm(f), rel=1e-12)
    assert tt_norm(f.map(lambda c: 0 * c)) == 0.0
    matrix = TTMatrix((seeded(1, 2, 3, 4), seeded(4, 3, 2, 1)), (5, 6))
    assert tt_norm(matrix) == pytest.approx(float(matrix.to_dense().norm()), rel=1e-13)
    half = matrix.map(lambda c: c / 2)
    off = float((matrix.to_dense() - half.to_dense()).norm())
    assert tt_distance(matrix, half) == pytest.approx(off, rel=1e-12)


@pytest.mark.parametrize("center", [0, 1, 3, -2])
def test_orthogonal_on_both_sides_of_the_center(center: int) -> None:
    f = train(modes=(0, 3, 2, 1))
    g = tt_orthogonalize(f, center)
    torch.testing.assert_close(g.to_dense(), f.to_dense(), rtol=1e-12, atol=1e-12)
    at = center % 4
    for k, core in enumerate(g.cores):
        side = core.flatten(0, 1).T if k < at else core.flatten(1)
        if k != at:
            eye = torch.eye(len(side), dtype=side.dtype)
            torch.testing.assert_close(side @ side.T, eye, rtol=0, atol=1e-13)
    assert float(g.cores[at].norm()) == pytest.approx(tt_norm(f), rel=1e-12)


def test_ranks_are_no_more_than_sizes_allow() -> None:
    f = TTFactors((seeded(1, 2, 5), seeded(5, 3, 7), seeded(7, 2, 1)))
    for center in range(3):
        g = tt_orthogonalize(f, center)
        torch.testing.assert_close(g.to_dense(), f.to_dense(), rtol=1e-12, atol=1e-12)
    assert g.rank == (1, 2, 2, 1)


def test_functions_of_entries() -> None:
    f, g = train(modes=(0, 3, 2, 1)), train(4, modes=(0, 3, 2, 1))

    def ratio(x: Tensor, y: Tensor) -> Tensor:
        return x * y / (1 + y.square())

    fit = fit_tt_elementwise(ratio, [f, g], error=1e-6, random_state=0)
    expected = ratio(f.to_dense(), g.to_dense())
    assert fit.factors.rel_error(expected) < 1e-5
    product = tt_elementwise(torch.mul, [f, g], error=1e-10, random_state=0)
    assert product.modes == f.modes
    assert product.rel_error(f.to_dense() * g.to_dense()) < 1e-8
    short = tt_elementwise(torch.square, [f.to(torch.float32)], 4, random_state=0)
    assert short.dtype == torch.float32


def test_bad_trains_are_told() -> None:
    f = train()

    def refused(kind: Any, words: str, call: Any, *args: Any) -> None:
        with pytest.raises(kind, match=words):
            call(*args)

    nan = f.map(lambda c: c * torch.nan)
    for call in (tt_norm, tt_orthogonalize):
        refused(ArgumentError, "factors is a Tensor; pass TTFactors", call, f.to_dense())
        refused(ArgumentError, "factors: cores.0 contains NaN or Inf", call, nan)
    refused(ArgumentError, "second: cores.0 contains NaN", tt_distance, f, nan)
    refused(ShapeError, "both must be alike", tt_distance, f, train(modes=(3, 2, 1, 0)))
    refused(ArgumentError, "bring them together", tt_distance, f, f.to(torch.float32))
    for center in (4, -5, 1.0, True):
        refused(ArgumentError, "center=.* is no core of 4", tt_orthogonalize, f, center)
    refused(ArgumentError, r"trains=\[\] is empty", tt_elementwise, torch.exp, [], 2)
    refused(ArgumentError, "trains=.* must be a sequence", tt_elementwise, torch.exp, 3, 2)
    refused(ArgumentError, r"trains\[0\] is a Tensor", tt_elementwise, torch.exp, [f.to_dense()], 2)
    refused(ArgumentError, "function returned nan", tt_elementwise, torch.log, [f], 2)
