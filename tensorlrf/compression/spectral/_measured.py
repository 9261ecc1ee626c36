"""The spectra of a model's weights, as a value."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tensorlrf.compression._render import Header, Table
from tensorlrf.compression.plan._heat_map import plot_heat_map
from tensorlrf.compression.spectral.words import MEASURES
from tensorlrf.decomposition.analysis.measures import SpectralMeasures
from tensorlrf.errors import unknown

if TYPE_CHECKING:
    from rich.console import Group

HEADER: Header = (
    ("layer", "left"),
    ("kind", "left"),
    ("weight", "right"),
    ("values", "right"),
    ("nuclear norm", "right"),
    ("stable rank", "right"),
    ("effective rank", "right"),
    ("of all", "right"),
    ("entropy", "right"),
)


@dataclass(frozen=True)
class LayerSpectrum:
    """Measures of the weight of one layer.

    Parameters
    ----------
    name : str
        Qualified.
    kind : str
        Its type.
    shape, groups
        Of its weight. Of a convolution with groups values are those of all its groups.
    measures : SpectralMeasures
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    groups: int
    measures: SpectralMeasures


@dataclass(frozen=True)
class Spectra:
    """What `spectra` gives. Prints itself as a table; `to_json()`; `plot()`.

    Parameters
    ----------
    layers : tuple of LayerSpectrum
        In the order of the model.
    model : SpectralMeasures
        Of the block-diagonal matrix of all these weights, which has the values of all.
    """

    layers: tuple[LayerSpectrum, ...]
    model: SpectralMeasures

    def layer(self, name: str) -> LayerSpectrum:
        """The row of a layer. Raises KeyError."""
        for row in self.layers:
            if row.name == name:
                return row
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps(self.to_dict(), indent=1)

    def plot(self, path: str | os.PathLike[str], measure: str = "effective_rank") -> None:
        """A picture of one measure of all layers.

        A row for each block, a column for each layer within it.

        Parameters
        ----------
        path : str or path
            Its suffix says of which kind (.png, .svg, .pdf).
        measure : {"effective_rank", "stable_rank", "nuclear_norm", "entropy"}

        Raises
        ------
        UnsupportedError
            Where matplotlib is missing, which the extra `plot` brings.
        ArgumentError
            For another suffix, or another measure.
        FileError
            Where the file cannot be written.
        """
        if measure not in MEASURES:
            raise unknown("measure", measure, MEASURES)
        values = {row.name: float(getattr(row.measures, measure)) for row in self.layers}
        plot_heat_map(path, values, measure.replace("_", " "), of="spectra.plot")

    def _table(self) -> Table:
        rows = [
            [row.name, row.kind, " x ".join(map(str, row.shape)), *_cells(row.measures)]
            for row in self.layers
        ]
        rows.append(["all", "", "", *_cells(self.model)])
        return Table(f"spectra of {len(self.layers)} weights", HEADER, rows, ())

    def __rich__(self) -> Group:
        return self._table().__rich__()

    def __str__(self) -> str:
        return str(self._table())


def _cells(found: SpectralMeasures) -> Sequence[str]:
    return (
        f"{found.size:,}",
        f"{found.nuclear_norm:.4g}",
        f"{found.stable_rank:.4g}",
        f"{found.effective_rank:.4g}",
        f"{found.effective_share:.1%}",
        f"{found.entropy:.4g}",
    )
