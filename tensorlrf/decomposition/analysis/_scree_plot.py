"""A picture of a scree: singular values by rank, and errors by the parameters kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from tensorlrf.files.picture import picture


class Curve(NamedTuple):
    """One spectrum as it is drawn; an entry for each rank from one on.

    label   what was unfolded
    values  singular values, descending
    kept    share of the tensor's parameters that the factors of this rank have
    errors  relative errors
    """

    label: str
    values: Sequence[float]
    kept: Sequence[float]
    errors: Sequence[float]


def plot_scree(path: str | os.PathLike[str], curves: Sequence[Curve]) -> None:
    """Two panels with one line a spectrum."""
    with picture(path, (10, 4), of="scree.plot") as figure:
        left, right = figure.subplots(1, 2)
        for label, values, kept, errors in curves:
            largest = values[0] or 1.0
            ranks = range(1, len(values) + 1)
            left.plot(ranks, [v / largest for v in values], ".-", label=label)
            right.plot(kept, errors, ".-", label=label)
        if any(v > 0 for curve in curves for v in curve.values):
            left.set_yscale("log")
        left.set_xlabel("rank")
        left.set_ylabel("singular value / largest")
        left.grid(alpha=0.3)
        left.legend(fontsize=7)
        right.set_xlabel("share of the parameters")
        right.set_ylabel("relative error")
        right.set_ylim(bottom=0)
        # Beyond the tensor's own size no factors are wanted.
        right.set_xlim(0, max(1.0, min(min(curve.kept) for curve in curves)))
        right.grid(alpha=0.3)
