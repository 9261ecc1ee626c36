"""A picture of a scree: singular values by rank, and errors by the parameters kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tensorlrf._files._replace import replacing
from tensorlrf.errors import ArgumentError, UnsupportedError

if TYPE_CHECKING:
    from tensorlrf.decomposition.analysis._scree import Scree


def plot_scree(scree: Scree, path: str | os.PathLike[str]) -> None:
    """Two panels with one line a spectrum."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnsupportedError(
            "scree.plot needs matplotlib: pip install 'tensorlrf[plot]'"
        ) from error
    suffix = Path(path).suffix.lstrip(".")
    if not suffix:
        raise ArgumentError(f"path={os.fspath(path)!r} needs a suffix, such as .png or .svg")
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for spectrum in scree.spectra:
        ranks = range(1, len(spectrum.values) + 1)
        largest = spectrum.values[0] or 1.0
        left.plot(ranks, [v / largest for v in spectrum.values], ".-", label=spectrum.name)
        kept = [p / scree.n_params for p in spectrum.params]
        right.plot(kept, spectrum.errors, ".-", label=spectrum.name)
    if any(v > 0 for s in scree.spectra for v in s.values):
        left.set_yscale("log")
    left.set_xlabel("rank")
    left.set_ylabel("singular value / largest")
    left.grid(alpha=0.3)
    left.legend(fontsize=7)
    right.set_xlabel("share of the parameters")
    right.set_ylabel("relative error")
    right.set_ylim(bottom=0)
    # Beyond the tensor's own size no factors are wanted.
    right.set_xlim(0, max(1.0, min(min(s.params) for s in scree.spectra) / scree.n_params))
    right.grid(alpha=0.3)
    try:
        with replacing(path, overwrite=True) as temporary:
            figure.savefig(temporary, format=suffix, dpi=130)
    except ValueError as error:
        raise ArgumentError(f"path={os.fspath(path)!r}: {error}") from None
