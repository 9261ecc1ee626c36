"""What a model loses at each share of its ranks, as a value."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from tensorlrf.compression._render import Header, Table
from tensorlrf.compression._survey import ROOT
from tensorlrf.compression.report._json import check_version, parsed, read_as, read_dataclass
from tensorlrf.errors import ArgumentError

if TYPE_CHECKING:
    from rich.console import Group

FORMAT_VERSION = 1
KEY = "rank_table"
"""The attribute of a model that has a table, and the entry of a file."""

HEADER: Header = (
    ("share of ranks", "right"),
    ("parameters", "right"),
    ("kept", "right"),
    ("output error", "right"),
    ("95%", "right"),
    ("metric", "right"),
)


@dataclass(frozen=True)
class RankRow:
    """A model at one share of its ranks.

    Parameters
    ----------
    scale : float
        The share, as `rank_scale` takes it.
    params : int
        Parameters that run, of the whole model.
    error : float or None
        Of its outputs on batches held out: relative, root mean square; None where outputs cannot be
        compared.
    low, high : float or None
        The interval of 95% of `error`, where there are samples enough.
    quality : float or None
        What `evaluate` says of it.
    """

    scale: float
    params: int
    error: float | None
    low: float | None = None
    high: float | None = None
    quality: float | None = None


@dataclass(frozen=True)
class RankTable:
    """What `rank_table` gives: the rows from the largest share to the smallest.

    Parameters
    ----------
    rows : tuple of RankRow
    params : int
        Parameters of the model on all its ranks.
    batches : int
        How many were held out.
    quality : float or None
        What `evaluate` says of the model that all are compared with.

    Examples
    --------
    >>> model = torch.nn.Sequential(tensorlrf.nn.factorize(torch.nn.Linear(32, 32), "svd", 8))
    >>> table = tensorlrf.rank_table(model, [torch.randn(16, 32) for _ in range(4)])
    >>> table.rows[0].scale, table.rows[0].error
    (1.0, 0.0)
    """

    rows: tuple[RankRow, ...]
    params: int
    batches: int
    quality: float | None = None

    def within(self, error: float) -> RankRow:
        """The row of fewest parameters whose error is at most this.

        Parameters
        ----------
        error : float
            Relative, of the outputs.

        Returns
        -------
        RankRow
            Its `scale` is for `rank_scale`.

        Raises
        ------
        ArgumentError
            Where no row is within it.
        """
        rows = [row for row in self.rows if row.error is not None and row.error <= error]
        if not rows:
            least = min((row.error for row in self.rows if row.error is not None), default=None)
            raise ArgumentError(f"error={error!r}: no row is within it, the least error is {least}")
        return min(rows, key=lambda row: row.params)

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps(self.to_dict(), indent=1)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        values = {"version": FORMAT_VERSION, **asdict(self)}
        return {**values, "rows": [asdict(row) for row in self.rows]}

    @classmethod
    def from_json(cls, text: str) -> RankTable:
        """Inverse of `to_json`.

        Parameters
        ----------
        text : str

        Returns
        -------
        RankTable

        Raises
        ------
        FileFormatError
            For what is none.
        """
        with read_as("table of ranks"):
            return cls.from_dict(parsed(text))

    @classmethod
    def from_dict(cls, values: Any) -> RankTable:
        """Inverse of `to_dict`.

        Parameters
        ----------
        values : mapping

        Returns
        -------
        RankTable

        Raises
        ------
        FileFormatError
            For what is none.
        """
        with read_as("table of ranks"):
            found = dict(values)
            check_version(found.pop("version"), FORMAT_VERSION, "table of ranks")
            table = read_dataclass(cls, found, "the text")
            if not all(0 < row.scale <= 1 for row in table.rows):
                raise ValueError("a scale is no share in (0, 1]")
            table._table()
        return table

    def to_markdown(self) -> str:
        """The table in Markdown."""
        return self._table().to_markdown()

    def _table(self) -> Table:
        below = [f"outputs on {self.batches} batches held out"]
        if self.quality is not None:
            below.append(f"the metric of what they are compared with: {self.quality:.4g}")
        return Table("ranks at run time", HEADER, [self._cells(row) for row in self.rows], [below])

    def _cells(self, row: RankRow) -> list[str]:
        interval = "-" if row.low is None else f"{row.low:.3g} to {row.high:.3g}"
        return [
            f"{row.scale:.3g}",
            f"{row.params:,}",
            f"{row.params / max(1, self.params):.1%}",
            "-" if row.error is None else f"{row.error:.3g}",
            interval,
            "-" if row.quality is None else f"{row.quality:.4g}",
        ]

    def __rich__(self) -> Group:
        return self._table().__rich__()

    def __str__(self) -> str:
        return str(self._table())


def table_of(model: nn.Module) -> RankTable | None:
    """The table that a model has."""
    found = vars(model).get(KEY)
    return found if isinstance(found, RankTable) else None


def entry_of(model: nn.Module) -> dict[str, Any]:
    """What a file says of the table of a model, under the name of the whole in its plan: readers
    that know no tables look at the names of layers alone."""
    table = table_of(model)
    return {} if table is None else {ROOT: {KEY: table.to_dict()}}


def give_table(model: nn.Module, plan: Mapping[str, Any]) -> None:
    """Put the table of a file's plan on the model. Raises FileFormatError for one that is none."""
    entry = plan.get(ROOT)
    if isinstance(entry, Mapping) and KEY in entry:
        vars(model)[KEY] = RankTable.from_dict(entry[KEY])


def finite(number: float | None) -> float | None:
    """None in place of what JSON does not have."""
    return None if number is None or not math.isfinite(number) else number
