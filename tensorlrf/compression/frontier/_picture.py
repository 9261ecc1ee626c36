"""A picture of a frontier: what models of every size are worth."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tensorlrf.files.picture import picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKS = {"factors": ("o-", "#2b6cb0"), "dense": ("s", "#1a202c")}
OTHERS = (("D", "#c05621"), ("^", "#2f855a"))


def plot_frontier(
    path: str | os.PathLike[str],
    kinds: Sequence[str],
    sizes: Sequence[int],
    latencies: Sequence[float | None],
    values: Sequence[float | None],
    bounds: Sequence[float | None],
    label: str,
    *,
    higher: bool,
) -> None:
    """All sequences have an entry for each point.

    kinds   points of one kind are one line
    values  over bytes and, where any are known, over seconds
    bounds  by how much worse than that of the kind "dense" the value may be
    higher  whether higher values are better
    """
    timed = sum(t is not None for t in latencies) > 1
    with picture(path, (11 if timed else 6, 4.2), of="frontier.plot") as figure:
        panels = figure.subplots(1, 2 if timed else 1, sharey=True, squeeze=False)[0]
        dense = next((v for k, v in zip(kinds, values, strict=True) if k == "dense"), None)
        far = [b if b is None or not higher else -b for b in bounds]
        low = [None if b is None or dense is None else dense + b for b in far]
        _panel(panels[0], kinds, [size / 1e6 for size in sizes], values, low)
        panels[0].set_xlabel("MB")
        panels[0].set_ylabel(label)
        panels[0].legend()
        if timed:
            _panel(
                panels[1], kinds, [None if t is None else t * 1e3 for t in latencies], values, low
            )
            panels[1].set_xlabel("ms")


def _panel(
    axes: Axes,
    kinds: Sequence[str],
    places: Sequence[float | None],
    values: Sequence[float | None],
    low: Sequence[float | None],
) -> None:
    others = iter(OTHERS * len(kinds))
    for kind in dict.fromkeys(kinds):
        rows = [
            (x, y, b)
            for k, x, y, b in zip(kinds, places, values, low, strict=True)
            if k == kind and x is not None and y is not None
        ]
        mark, color = MARKS.get(kind) or next(others)
        axes.plot([x for x, _, _ in rows], [y for _, y, _ in rows], mark, color=color, label=kind)
        for x, y, bound in rows:
            if bound is not None and kind != "dense":
                axes.plot([x, x], [bound, y], color=color, alpha=0.4)
    axes.grid(alpha=0.3)
