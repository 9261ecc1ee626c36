"""A picture of a number for each layer of a model: blocks by kinds of layers."""

from __future__ import annotations

import os
from collections.abc import Mapping

from tensorlrf.compression.page.heat_map import place
from tensorlrf.files.picture import picture


def plot_heat_map(
    path: str | os.PathLike[str],
    values: Mapping[str, float],
    title: str,
    *,
    of: str = "sensitivity.plot",
) -> None:
    """Qualified names with a value each, coloured by its logarithm: a row for each block, which is
    what comes before the last number in a name and that number, a column for each name within.

    of  who draws, for errors
    """
    cells = {place(name): value for name, value in values.items()}
    blocks = list(dict.fromkeys(block for block, _ in cells))
    kinds = list(dict.fromkeys(kind for _, kind in cells))
    size = (max(4.5, 2.5 + 0.5 * len(kinds)), 2.0 + 0.25 * len(blocks))  # room for the title
    with picture(path, size, of=of) as figure:
        axes = figure.subplots()
        grid = [[cells.get((block, kind), float("nan")) for kind in kinds] for block in blocks]
        positive = [v for row in grid for v in row if v > 0]
        low, high = (min(positive), max(positive)) if positive else (0.1, 1.0)
        image = axes.imshow(grid, norm="log", vmin=low, vmax=max(high, 2 * low), aspect="auto")
        axes.set_xticks(range(len(kinds)), kinds, rotation=45, ha="right", fontsize=7)
        axes.set_yticks(range(len(blocks)), blocks, fontsize=7)
        axes.set_title(title, fontsize=8)
        figure.colorbar(image, ax=axes)
