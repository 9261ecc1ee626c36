"""A picture of a report: what each layer keeps, and what it loses."""

from __future__ import annotations

import os
from collections.abc import Sequence

from tensorlrf.files.picture import picture


def plot_layers(
    path: str | os.PathLike[str],
    names: Sequence[str],
    before: Sequence[int],
    after: Sequence[int],
    weight_errors: Sequence[float | None],
    output_errors: Sequence[float | None],
) -> None:
    """Two panels, one bar a layer: parameters before and after; errors of weight and outputs,
    where they are known. All sequences have an entry for each layer, the first one at the top."""
    with picture(path, (11, 1.6 + 0.22 * len(names)), of="report.plot") as figure:
        places = range(len(names))
        left, right = figure.subplots(1, 2, sharey=True)
        left.barh(places, before, color="#d0d4da", label="dense")
        left.barh(places, after, color="#2b6cb0", label="factors")
        left.set_xlabel("parameters")
        left.set_yticks(list(places), names, fontsize=7)
        left.invert_yaxis()
        left.legend()
        for errors, label, color in (
            (weight_errors, "weight", "#a0aec0"),
            (output_errors, "outputs", "#c05621"),
        ):
            known = [(e, k) for k, e in enumerate(errors) if e is not None]
            right.plot([e for e, _ in known], [k for _, k in known], "o", color=color, label=label)
        right.set_xlabel("relative error")
        right.set_xlim(left=0)
        right.grid(axis="x", alpha=0.3)
        right.legend()
