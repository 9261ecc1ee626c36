"""What a run over a checkpoint has done, as a value that prints itself."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tensorlrf.compression._render import as_text
from tensorlrf.compression.page.checkpoint_run import run_page
from tensorlrf.compression.page.document import Page, Paged
from tensorlrf.errors import printable

if TYPE_CHECKING:
    from rich.console import Group

WIDTH = 160
HEADER = ("layer", "shape", "format", "rank", "parameters", "kept", "weight error", "seconds")
MOST_ROWS = 2000
"""Of a table; the JSON has all."""


@dataclass(frozen=True)
class CheckpointLayer:
    """A weight that was factored.

    Parameters
    ----------
    name : str
        Of its layer.
    shape : tuple of int
        Of the weight.
    format : str
        Of its factors.
    rank : int or tuple of int
    params_before, params_after : int
    weight_error : float
        Relative, in the Frobenius norm, of the factors as stored.
    seconds : float
        That its factors took, of the run that made them; 0 where that had ended before this call.
    output_error : float, optional
        Relative error of its outputs on inputs held out, or else on those of the fit; None where it
        was fitted to none.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    rank: int | tuple[int, ...]
    params_before: int
    params_after: int
    weight_error: float
    seconds: float
    output_error: float | None = None


@dataclass(frozen=True)
class CheckpointReport(Paged):
    """What `compress_checkpoint` has done. Prints itself as a table; `to_html(path)`.

    Parameters
    ----------
    source, target : str
    layers : tuple of CheckpointLayer
        The factored ones.
    stays : dict of str to str
        Name of a module with a weight that was not factored -> why.
    tensors : int
        That were written.
    bytes_before, bytes_after : int
        Of all tensors.
    resumed : int
        Layers that an earlier run had done.
    notes : tuple of str
        How it was told which tensors are layers, where that is not by the model itself, and which
        tensors were left out.
    already : bool
        Whether all was there, of an earlier run of the same call, and nothing was written.
    """

    source: str
    target: str
    layers: tuple[CheckpointLayer, ...]
    stays: dict[str, str]
    tensors: int
    bytes_before: int
    bytes_after: int
    resumed: int
    notes: tuple[str, ...] = ()
    already: bool = False

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps(asdict(self))

    def _earlier(self) -> list[str]:
        if self.already:
            return ["all of it was there already, from the same source; nothing was written"]
        return [f"{self.resumed:,} layers are of an earlier run"] if self.resumed else []

    def __str__(self) -> str:
        return as_text(self.__rich__(), WIDTH)

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        title = Text(printable(f"{self.source} to {self.target}"))
        table = Table(title=title, title_justify="left")
        for k, name in enumerate(HEADER):
            table.add_column(name, justify="right" if k in (3, 4, 5, 6, 7) else "left")
        for row in self.layers[:MOST_ROWS]:
            table.add_row(*(Text(printable(cell)) for cell in _cells(row)))
        rest = len(self.layers) - MOST_ROWS
        lines = [
            *([f"and {rest:,} more; the JSON has all"] if rest > 0 else []),
            *self._lines(),
            *(f"stays: {name}: {why}" for name, why in self.stays.items()),
        ]
        return Group(table, *(Text(printable(line)) for line in lines))

    def _lines(self) -> list[str]:
        before = sum(row.params_before for row in self.layers)
        after = sum(row.params_after for row in self.layers)
        return [
            f"factored weights: {before:,} to {after:,} numbers"
            + (f" ({after / before:.1%})" if before else ""),
            f"all {self.tensors:,} tensors: {self.bytes_before:,} to {self.bytes_after:,} bytes "
            f"({self.bytes_after / max(1, self.bytes_before):.1%})",
            *self._earlier(),
            *self.notes,
        ]

    def _page(self, title: str | None, date: str | None) -> Page:
        called = title or "Compression report"
        size = self.bytes_before, self.bytes_after
        return run_page(called, date, self.target, self.layers, self.stays, size, self._lines())


def _cells(row: CheckpointLayer) -> list[str]:
    rank = ", ".join(map(str, row.rank)) if isinstance(row.rank, tuple) else str(row.rank)
    return [
        row.name or "(model)",
        "x".join(map(str, row.shape)),
        row.format,
        rank,
        f"{row.params_before:,} to {row.params_after:,}",
        f"{row.params_after / row.params_before:.1%}",
        f"{row.weight_error:.3g}",
        f"{row.seconds:.1f}",
    ]
