"""Balanced factorisations of the sides of a matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from tensorlrf.decomposition._input import check_sequence
from tensorlrf.errors import ArgumentError, ShapeError

PART = 12
"""What the parts are near, on a logarithmic scale, where the order is not given."""

MOST_MODES = 64
"""Of a tensor of torch."""


def mode_sizes(n: int, order: int) -> tuple[int, ...]:
    """So many sizes, descending, whose product is n or a little more.

    The parts are good if none is above 2 n^(1/order). If n has good factorisations, the one with
    the smallest largest part is taken (then the smallest second, and so on); else that of the next
    larger number that has one, and the product exceeds n: the rest is padding.

    Parameters
    ----------
    n : int
    order : int
        The number of sizes.

    Returns
    -------
    tuple of int

    Raises
    ------
    ArgumentError
        Where n or `order` is not a positive int.

    Examples
    --------
    >>> tensorlrf.decomposition.mode_sizes(768, 3), tensorlrf.decomposition.mode_sizes(97, 2)
    ((12, 8, 8), (14, 7))
    """
    _positive("n", n)
    _positive("order", order)
    bound = math.floor(2 * n ** (1 / order) + 1e-9)
    padded = n
    # ceil(n^(1/order))^order has a good factorisation, so this ends.
    while (sizes := _balanced(padded, order, bound)) is None:
        padded += 1
    return sizes


def matrix_sizes(
    m: int,
    n: int,
    row_sizes: Sequence[int] | None,
    column_sizes: Sequence[int] | None,
    order: int | None,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes of the digits of rows and columns: those given, the others from `mode_sizes`.

    The order is that of the sizes given, else `order`, else such that parts are near 12, two at
    least. Raises ArgumentError for sizes that are no sequence of positive ints, ShapeError where
    lengths differ or a product is less than the side.
    """
    if order is not None:
        _positive("order", order)
    for name, sizes, side in (("row_sizes", row_sizes, m), ("column_sizes", column_sizes, n)):
        if sizes is not None:
            check_sequence(sizes, name, str(mode_sizes(side, 2)))
    given = [len(s) for s in (row_sizes, column_sizes) if s is not None]
    parts = [*given, *([] if order is None else [order])]
    if len(set(parts)) > 1:
        raise ShapeError(
            f"row_sizes={_shown(row_sizes)}, column_sizes={_shown(column_sizes)} and "
            f"order={order} differ in length; for order {parts[0]} such as "
            f"row_sizes={mode_sizes(m, max(2, parts[0]))}, "
            f"column_sizes={mode_sizes(n, max(2, parts[0]))}"
        )
    if parts and parts[0] > MOST_MODES:
        raise ArgumentError(
            f"order={parts[0]} is above {MOST_MODES}, the modes that a tensor has at most; give "
            "fewer digits"
        )
    if parts and parts[0] < 2:
        raise ArgumentError(
            f"order={order}, row_sizes={_shown(row_sizes)}, column_sizes={_shown(column_sizes)}: "
            "a train of one core is the matrix itself; give two at least"
        )
    d = parts[0] if parts else max(2, round(math.log(max(m, n, 2)) / math.log(PART)))
    return _checked("row_sizes", row_sizes, m, d), _checked("column_sizes", column_sizes, n, d)


def _checked(name: str, sizes: Sequence[int] | None, n: int, order: int) -> tuple[int, ...]:
    if sizes is None:
        return mode_sizes(n, order)
    for part in sizes:
        _positive(f"an entry of {name}={tuple(sizes)}", part)
    if math.prod(sizes) < n or not sizes:
        raise ShapeError(
            f"{name}={tuple(sizes)} multiply to {math.prod(sizes)}, which is less than the {n} of "
            f"the matrix; possible are {', '.join(map(str, _suggestions(n, order)))}"
        )
    return tuple(int(part) for part in sizes)


def _suggestions(n: int, order: int) -> list[tuple[int, ...]]:
    return list(dict.fromkeys(mode_sizes(n, d) for d in (max(2, order), max(2, order) + 1, 2)))


def _shown(sizes: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if sizes is None else tuple(sizes)


def _positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(f"{name}: {value!r} must be an int of at least 1")


@lru_cache(maxsize=1 << 14)
def _balanced(n: int, order: int, most: int) -> tuple[int, ...] | None:
    """The least descending factorisation of n into `order` parts of at most `most`, or None."""
    if order == 1:
        return (n,) if n <= most else None
    # The largest part is at least n^(1/order); the first divisor that leaves a rest which can
    # be divided into parts no larger is the smallest possible.
    for first in range(max(1, math.ceil(n ** (1 / order) - 1e-9)), min(n, most) + 1):
        if n % first == 0:
            rest = _balanced(n // first, order - 1, first)
            if rest is not None:
                return (first, *rest)
    return None


def row_digits(n: int) -> tuple[int, ...]:
    """Two balanced factors, or n itself where only a padded number has them: rings have none."""
    digits = mode_sizes(n, 2)
    return digits if math.prod(digits) == n else (n,)
