"""Rows of a layer, counted in powers of two."""

from __future__ import annotations

# Rows are counted in powers of two; more rows than the last run as the last.
BUCKETS = tuple(1 << k for k in range(21))


def bucket(rows: int) -> int:
    """The smallest of `BUCKETS` that is at least `rows`, or the largest of all."""
    # Comparisons, so that a symbolic number of rows is guarded by a range and not by its value.
    for limit in BUCKETS[:-1]:
        if rows <= limit:
            return limit
    return BUCKETS[-1]
