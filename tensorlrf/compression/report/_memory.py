"""What calibration takes in memory, told before it begins, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tensorlrf.compression._render import Header, Table
from tensorlrf.compression._words import bytes_words

if TYPE_CHECKING:
    from rich.console import Group

HEADER: Header = (
    ("layer", "left"),
    ("n", "right"),
    ("moments", "left"),
    ("their bytes", "right"),
    ("lags", "right"),
    ("fit", "right"),
    ("together", "right"),
    ("activations", "right"),
)


@dataclass(frozen=True)
class LayerMemory:
    """Of one layer, in bytes at the most.

    Parameters
    ----------
    name : str
    columns : int
        n, of the weight as a matrix (of one group).
    form : str
        Of its second moments: "full", "sketch of 256" (rows), or "none" where it gets the plain
        method.
    moments : int
        The sums that are taken of its inputs, those held out among them, and the matrices that are
        made of these.
    lags : int
        The same of what the layers before it have lost (`target="original"`).
    work : int
        The moments and copies of them and of the weight, while it is fitted, after the sums.
    activations : int
        Its inputs in all batches that wait for it, from the shapes of the first batch.
    """

    name: str
    columns: int
    form: str
    moments: int
    lags: int
    work: int
    activations: int

    @property
    def whole(self) -> int:
        """What `memory_limit` is held against: all but activations; sums and fit do not meet."""
        return self.lags + max(self.moments, self.work)


@dataclass(frozen=True)
class MemoryForecast:
    """What calibration and fits take, beside the model and its copy; prints as a table.

    Parameters
    ----------
    limit : int or None
        As given.
    layers : tuple of LayerMemory
        Those that are to be factored and that the first batch reaches.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
    >>> small, report = tensorlrf.compress(
    ...     model, keep_params=0.5, skip=[], calibration=[torch.rand(512, 64)], progress=False
    ... )
    >>> row = report.memory.layers[0]
    >>> row.form, row.whole == report.memory.peak
    ('full', True)
    """

    limit: int | None
    layers: tuple[LayerMemory, ...]

    @property
    def peak(self) -> int:
        """Of the layer that takes the most, without activations."""
        return max((row.whole for row in self.layers), default=0)

    def __str__(self) -> str:
        return str(self._table())

    def __rich__(self) -> Group:
        return self._table().__rich__()

    def _table(self) -> Table:
        limit = "no limit given" if self.limit is None else f"limit {bytes_words(self.limit)}"
        title = f"memory of calibration: at most {bytes_words(self.peak)} for a layer, {limit}"
        rows = [
            [
                row.name,
                f"{row.columns:,}",
                row.form,
                *map(bytes_words, (row.moments, row.lags, row.work, row.whole, row.activations)),
            ]
            for row in self.layers
        ]
        return Table(title, HEADER, rows, [])
