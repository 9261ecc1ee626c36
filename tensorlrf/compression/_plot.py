"""A picture of a report: what each layer keeps, and what it loses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tensorlrf._files._replace import replacing
from tensorlrf.errors import ArgumentError, UnsupportedError

if TYPE_CHECKING:
    from tensorlrf.compression._report import Report


def plot_report(report: Report, path: str | os.PathLike[str]) -> None:
    """Two panels, one bar a layer: parameters before and after; errors of weight and outputs."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnsupportedError(
            "report.plot needs matplotlib: pip install 'tensorlrf[plot]'"
        ) from error
    suffix = Path(path).suffix.lstrip(".")
    if not suffix:
        raise ArgumentError(f"path={os.fspath(path)!r} needs a suffix, such as .png or .svg")
    rows = [row for row in report.layers if row.factored]
    places = range(len(rows))
    figure = Figure(figsize=(11, 1.6 + 0.22 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    left.barh(places, [r.params_before for r in rows], color="#d0d4da", label="dense")
    left.barh(places, [r.params_after for r in rows], color="#2b6cb0", label="factors")
    left.set_xlabel("parameters")
    left.set_yticks(list(places), [r.name for r in rows], fontsize=7)
    left.invert_yaxis()
    left.legend()
    weight = [r.weight_error for r in rows]
    output = [r.output_error for r in rows]
    right.plot(
        [w for w in weight if w is not None],
        [k for k, w in zip(places, weight, strict=True) if w is not None],
        "o",
        color="#a0aec0",
        label="weight",
    )
    right.plot(
        [e for e in output if e is not None],
        [k for k, e in zip(places, output, strict=True) if e is not None],
        "o",
        color="#c05621",
        label="outputs",
    )
    right.set_xlabel("relative error")
    right.set_xlim(left=0)
    right.grid(axis="x", alpha=0.3)
    right.legend()
    try:
        with replacing(path, overwrite=True) as temporary:
            figure.savefig(temporary, format=suffix, dpi=130)
    except ValueError as error:
        raise ArgumentError(f"path={os.fspath(path)!r}: {error}") from None
