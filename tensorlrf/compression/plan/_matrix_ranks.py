"""Low-rank matrices in the place of whatever format a plan has, to judge it before it is fitted."""

from __future__ import annotations

import math
from collections.abc import Iterable

from tensorlrf.compression.plan._plan import LayerPlan


def matrix_ranks(rows: Iterable[LayerPlan]) -> dict[str, int]:
    """The ranks of low-rank matrices that have as many parameters, of the layers that get factors;
    nothing of those whose rank the fit decides."""
    ranks = {}
    for row in rows:
        if row.factored and row.params_after is not None:
            a_rank = row.shape[0] + row.groups * math.prod(row.shape[1:])
            ranks[row.name] = max(1, row.params_after // a_rank)
    return ranks
