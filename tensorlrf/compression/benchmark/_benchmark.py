"""What was measured of a model, and of another in turn with it, as a value."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tensorlrf.compression._render import Header, Table
from tensorlrf.compression._words import bytes_words
from tensorlrf.compression.benchmark._ratio import Ratio

if TYPE_CHECKING:
    from rich.console import Group

FORMAT_VERSION = 1

HEADER: Header = (
    ("", "left"),
    ("input", "left"),
    ("ms", "right"),
    ("ms against", "right"),
    ("pairs", "right"),
    ("of the pairs", "left"),
    ("tokens/s", "right"),
    ("tokens/s against", "right"),
    ("peak", "right"),
    ("peak against", "right"),
)


@dataclass(frozen=True)
class BenchmarkRow:
    """One kind of call.

    Parameters
    ----------
    what : str
        "forward", or "decoding": tokens one after the other, each on the cache of those before.
    input : str
        Its tensors and their shapes.
    seconds : float
        Median of a call.
    tokens : int or None
        Read in a forward, padding not counted, or written in decoding; None where there are none.
    peak : int or None
        Bytes that the call has at its highest beside the model: on CUDA of the allocator, elsewhere
        of the tensors that ops return. None for decoding.
    against_seconds, against_peak
        The same of the other model; None without one.
    ratio : Ratio or None
        Of the times, the other's over the model's.
    """

    what: str
    input: str
    seconds: float
    tokens: int | None
    peak: int | None
    against_seconds: float | None = None
    against_peak: int | None = None
    ratio: Ratio | None = None

    @property
    def tokens_per_second(self) -> float | None:
        """Of the model."""
        return None if self.tokens is None else self.tokens / self.seconds

    @property
    def against_tokens_per_second(self) -> float | None:
        """Of the other one."""
        if self.tokens is None or self.against_seconds is None:
            return None
        return self.tokens / self.against_seconds


@dataclass(frozen=True)
class Benchmark:
    """The result of `bench`. Prints itself as a table; `to_markdown()`; `to_json()`.

    Parameters
    ----------
    rows : tuple of BenchmarkRow
    bytes : int
        Of the parameters and buffers of the model.
    against_bytes : int or None
        Of the other model.
    dtypes, against_dtypes : tuple of str
        Of the parameters.
    device : str
    threads : int
        Of torch, for one operation on the CPU.
    torch : str
        Its version.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
    >>> found = tensorlrf.bench(model, [torch.randn(8, 64)], against=model, seconds=0.05)
    >>> [row.what for row in found.rows], found.bytes == found.against_bytes
    (['forward'], True)
    """

    rows: tuple[BenchmarkRow, ...]
    bytes: int
    against_bytes: int | None
    dtypes: tuple[str, ...]
    against_dtypes: tuple[str, ...]
    device: str
    threads: int
    torch: str

    def to_json(self) -> str:
        """As JSON text, with the verdicts."""
        values = {"version": FORMAT_VERSION, **asdict(self)}
        for told, row in zip(values["rows"], self.rows, strict=True):
            told["verdict"] = None if row.ratio is None else row.ratio.verdict
            told["tokens_per_second"] = row.tokens_per_second
            told["against_tokens_per_second"] = row.against_tokens_per_second
        return json.dumps(values, allow_nan=False)

    def to_markdown(self) -> str:
        """The table in Markdown."""
        return self._table().to_markdown()

    def __str__(self) -> str:
        return str(self._table())

    def __rich__(self) -> Group:
        return self._table().__rich__()

    def _table(self) -> Table:
        kept = list(range(len(HEADER)))
        if self.against_bytes is None:
            kept = [k for k in kept if HEADER[k][0] not in AGAINST]
        if all(row.tokens is None for row in self.rows):
            kept = [k for k in kept if not HEADER[k][0].startswith("tokens/s")]
        rows = [[_cells(row)[k] for k in kept] for row in self.rows]
        return Table(
            f"bench on {self.device}", tuple(HEADER[k] for k in kept), rows, [self._lines()]
        )

    def _lines(self) -> list[str]:
        told = f"parameters and buffers: {bytes_words(self.bytes)} in {', '.join(self.dtypes)}"
        if self.against_bytes is not None:
            told += (
                f", against {bytes_words(self.against_bytes)} in {', '.join(self.against_dtypes)}"
            )
        lines = [told]
        if self.against_bytes is not None and self.dtypes != self.against_dtypes:
            lines.append("the two are in other dtypes: what is won or lost may be due to these")
        unclear = sum(
            row.ratio is not None and row.ratio.verdict not in TELLING for row in self.rows
        )
        if unclear:
            lines.append(
                f"of {unclear} of {len(self.rows)} nothing can be said: the interval of 95% covers "
                "1, or pairs are too few; more seconds= or a quieter machine may tell"
            )
        lines.append(f"torch {self.torch}, {self.threads} threads, in turn, medians")
        return lines


AGAINST = ("ms against", "pairs", "of the pairs", "tokens/s against", "peak against")
TELLING = ("faster", "slower")


def _cells(row: BenchmarkRow) -> list[str]:
    return [
        row.what,
        row.input,
        f"{row.seconds * 1e3:.4g}",
        "" if row.against_seconds is None else f"{row.against_seconds * 1e3:.4g}",
        "" if row.ratio is None else str(row.ratio.pairs),
        "" if row.ratio is None else str(row.ratio),
        *(
            "" if rate is None else f"{rate:,.0f}" if rate >= 1000 else f"{rate:.4g}"
            for rate in (row.tokens_per_second, row.against_tokens_per_second)
        ),
        *("" if peak is None else bytes_words(peak) for peak in (row.peak, row.against_peak)),
    ]
