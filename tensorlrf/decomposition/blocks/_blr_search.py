"""Block sizes worth trying where none is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

SQUARES = (32, 64, 128, 256)
PARTS = (1, 2, 4, 8)

T = TypeVar("T")


def candidates(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Block sizes (mb, nb) for an (m, n) matrix: p x p equal parts, and some squares.

    The whole matrix as one block is among them, so that the best is never worse than one low-rank
    matrix of as many parameters.
    """
    m, n = shape
    parts = [(-(-m // p), -(-n // p)) for p in PARTS if p == 1 or min(m, n) >= 4 * p]
    squares = [(side, side) for side in SQUARES if 2 * side <= min(m, n)]
    return list(dict.fromkeys(parts + squares))


def best_of(
    shape: tuple[int, int], attempt: Callable[[tuple[int, int]], tuple[tuple[float, ...], T]]
) -> tuple[tuple[int, int], T]:
    """The block size whose attempt has the smallest losses, the first of them counting most; the
    first one of equals."""
    tried = [(attempt(block), block) for block in candidates(shape)]
    (_, made), block = min(tried, key=lambda one: one[0][0])
    return block, made
