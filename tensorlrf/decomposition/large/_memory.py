"""Memory that a pass over the data may take, shared out between what is held and slabs."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from tensorlrf.errors import ArgumentError

USUAL = "1GB"
"""Limit by default."""

RESERVE = 48 << 20
"""Bytes for what BLAS packs, for blocks that are raised to float64, and for gaps in the heap."""

SLAB = 128 << 20
"""Bytes that the work on one slab takes at most: more would gain nothing."""

UNITS = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip


def bytes_of(limit: Any) -> int:
    """Bytes of `memory_limit=`, an int or a text such as "512MB" (10^6) or "1.5 GiB" (2^30).

    Raises ArgumentError for what is neither.
    """
    if isinstance(limit, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", limit)
        if found and found[2].upper() in UNITS:
            limit = int(float(found[1]) * UNITS[found[2].upper()])
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ArgumentError(
            f"memory_limit={limit!r} must be a number of bytes, or a text such as '512MB' or "
            "'1.5GiB'"
        )
    return limit


class Need(NamedTuple):
    """Bytes that a pass takes: what is held during it, and for each row of a slab."""

    held: int
    each: int

    @property
    def least(self) -> int:
        """With a slab of one row."""
        return RESERVE + self.held + self.each


def rows_within(limit: int, need: Need, most: int) -> int:
    """Rows of a slab for which there is room, `most` at the most; 0 where there is none for one."""
    if limit < need.least:
        return 0
    room = limit - RESERVE - need.held
    return max(1, min(most, min(room, SLAB) // max(1, need.each)))


def check_room(what: str, limit: int, needs: Sequence[Need], along: int) -> None:
    """Raise ArgumentError, that names the least limit, where there is no room for one of these."""
    worst = max(needs, key=lambda need: need.least)
    if limit < worst.least:
        raise ArgumentError(
            f"memory_limit={limit} is below {worst.least}, the least that {what} takes here: "
            f"{RESERVE + worst.held} for factors and sums, {worst.each} for a slab of one along "
            f"mode {along}; give memory_limit={worst.least} or more, a smaller rank, or divide "
            "along another mode (along=)"
        )


def parted(sizes: Sequence[float], count: int) -> tuple[tuple[int, int], ...]:
    """Some numbers in `count` groups of neighbours, (first, last + 1) each, whose largest product
    is as small as can be."""
    if count == 1:
        return ((0, len(sizes)),)
    found = []
    for cut in range(1, len(sizes) - count + 2):
        rest = parted(sizes[cut:], count - 1)
        found.append(((0, cut), *((a + cut, b + cut) for a, b in rest)))
    return min(found, key=lambda groups: max(math.prod(sizes[a:b]) for a, b in groups))
