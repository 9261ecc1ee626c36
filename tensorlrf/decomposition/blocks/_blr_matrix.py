"""What the block formats share: a matrix as a target, and checks."""

from __future__ import annotations

from typing import Any

from tensorlrf.decomposition._input import as_tensor
from tensorlrf.decomposition._target import Target
from tensorlrf.errors import ShapeError, UnsupportedError


def matrix_target(tensor: Any, gram: Any, mean: Any, who: str) -> Target[Any]:
    """`tensor` as a checked matrix, with the second moments of its inputs, about
    their mean, where these are given.

    Raises UnsupportedError for more than two modes, ShapeError and ArgumentError for what cannot
    be decomposed.
    """
    checked = as_tensor(tensor)
    if checked.ndim != 2:
        raise UnsupportedError(
            f"{who} takes a matrix (out, in), got a tensor of shape {tuple(checked.shape)}; use "
            "svd, kron or tucker for a conv kernel, or reshape it to (out, in * kh * kw)"
        )
    return Target.of(checked, gram, mean)


def check_pair(
    value: Any, name: str, low: int, high: tuple[int, int], what: str
) -> tuple[int, int]:
    """An int or a pair of ints, each between `low` and what the matrix allows."""
    pair = (value, value) if isinstance(value, int) else value
    whole = isinstance(pair, (tuple, list)) and len(pair) == 2
    if not whole or any(isinstance(n, bool) or not isinstance(n, int) for n in pair):
        raise ShapeError(f"{name}={value!r} must be an int or a pair of ints, {what}")
    first, second = int(pair[0]), int(pair[1])
    if not (low <= first <= high[0] and low <= second <= high[1]):
        raise ShapeError(
            f"{name}={value!r} does not fit: {what}, so from {low} to {high[0]} along the rows and "
            f"from {low} to {high[1]} along the columns"
        )
    return first, second


def both(value: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """A number of blocks along either side, as two."""
    return (value, value) if isinstance(value, int) else value


def too_many(blocks: int | tuple[int, int] | None, shape: tuple[int, ...]) -> str:
    """Why a matrix of this shape cannot have so many blocks; empty where it can."""
    pair = both(blocks)
    if pair is not None and len(shape) == 2 and (pair[0] > shape[0] or pair[1] > shape[1]):
        return f"blocks={blocks} are more than its {shape[0]} rows or {shape[1]} columns"
    return ""
