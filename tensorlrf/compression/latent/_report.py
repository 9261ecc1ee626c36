"""What a cache holds of a token, before and after."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tensorlrf.compression._render import Header, Table
from tensorlrf.compression._words import bytes_words, error_words

if TYPE_CHECKING:
    from rich.console import Group

HEADER: Header = (
    ("attention", "left"),
    ("rank", "right"),
    ("numbers a token", "right"),
    ("kept", "right"),
    ("error of keys", "right"),
    ("error of values", "right"),
)


@dataclass(frozen=True)
class LatentRow:
    """One attention.

    Parameters
    ----------
    name : str
        Its qualified name.
    rank : int
        Numbers of the latent z of a token.
    before : int
        Numbers that a cache of keys and values holds of a token.
    after : int
        Numbers that it holds now: the rank, and of rotary positions their digits.
    keys_error, values_error : float
        Relative error of the keys, before they turn, and of the values, root mean square: on the
        inputs held out where there are any.
    """

    name: str
    rank: int
    before: int
    after: int
    keys_error: float
    values_error: float


@dataclass(frozen=True)
class LatentReport:
    """What `latent_cache` gives beside the model; its text is a table.

    Parameters
    ----------
    rows : tuple of LatentRow
        The attentions whose cache is latent.
    others : int
        Numbers that the cache holds of a token for attentions that were skipped.
    itemsize : int
        Bytes of a number.
    metric : str
        In what keys and values are near: "loss" or "outputs", as in `compress`.
    held_out : bool
        Whether errors are those on inputs held out.
    predicted : float or None
        What the model loses by `metric="loss"`, to second order, in the unit of its loss.
    unit : str
        That unit.

    Examples
    --------
    >>> from tensorlrf.compression import LatentReport, LatentRow
    >>> report = LatentReport((LatentRow("0.attention", 95, 192, 96, .1, .2),), 0, 2, "loss", True)
    >>> report.bytes_before, report.bytes_after, report.share
    (384, 192, 0.5)
    """

    rows: tuple[LatentRow, ...]
    others: int
    itemsize: int
    metric: str
    held_out: bool
    predicted: float | None = None
    unit: str = ""

    @property
    def bytes_before(self) -> int:
        """Bytes of a token in a cache of the given model, of all attentions."""
        return self.itemsize * (self.others + sum(row.before for row in self.rows))

    @property
    def bytes_after(self) -> int:
        """The same of the model with a latent cache."""
        return self.itemsize * (self.others + sum(row.after for row in self.rows))

    @property
    def share(self) -> float:
        """Of the bytes that are left."""
        return self.bytes_after / self.bytes_before

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, with the sums."""
        sums = {"bytes_before": self.bytes_before, "bytes_after": self.bytes_after}
        return {**asdict(self), "rows": [asdict(row) for row in self.rows], **sums}

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps(self.to_dict(), indent=1)

    def to_markdown(self) -> str:
        """The table in Markdown."""
        return self._table().to_markdown()

    def _table(self) -> Table:
        rows = [
            (
                row.name,
                f"{row.rank:,}",
                f"{row.before:,} to {row.after:,}",
                f"{row.after / row.before:.1%}",
                error_words(row.keys_error),
                error_words(row.values_error),
            )
            for row in self.rows
        ]
        sizes = f"{bytes_words(self.bytes_before)} to {bytes_words(self.bytes_after)}"
        below = [
            f"cache: {sizes} a token, {self.share:.1%}",
            f"keys and values near by {self.metric}, errors on inputs "
            f"{'held out' if self.held_out else 'that they are fitted to'}",
        ]
        if self.predicted is not None:
            below.append(f"predicted loss: {self.predicted:.3g} {self.unit}")
        return Table("latent cache", HEADER, rows, [below])

    def __rich__(self) -> Group:
        return self._table().__rich__()

    def __str__(self) -> str:
        return str(self._table())
