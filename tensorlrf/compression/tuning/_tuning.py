"""What was measured, and what was chosen for it, as a value."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tensorlrf.compression._render import as_text
from tensorlrf.errors import printable

if TYPE_CHECKING:
    from rich.console import Group

FORMAT_VERSION = 1
WIDTH = 200
FASTEST, ALL_DENSE = "fastest alone", "all dense"


@dataclass(frozen=True)
class BucketTiming:
    """One layer at one bucket of rows. Times are medians, in seconds a call.

    Parameters
    ----------
    bucket : int
        The rows that the measurement stands for: at most so many, more than half of it.
    rows, input
        Of the input that was measured: its rows M, and its shape.
    calls : int
        How often the layer was called with rows of this bucket, over all examples.
    seconds : Mapping
        Path -> time.
    dense_seconds : float
        Of torch's own layer with the rebuilt weight, which knows nothing of paths.
    chosen : str
        The path that runs from now on.
    dense_wins : bool
        Whether torch's own layer, or the path "dense", is as fast as any factored path, or the
        whole model is faster with dense here.
    """

    bucket: int
    rows: int
    input: tuple[int, ...]
    calls: int
    seconds: Mapping[str, float]
    dense_seconds: float
    chosen: str
    dense_wins: bool

    @property
    def chosen_seconds(self) -> float:
        """Of the path that was chosen."""
        return self.seconds[self.chosen]

    @property
    def ratio(self) -> float:
        """Dense time over chosen time: above 1 the layer is faster than the dense one."""
        return _ratio(self.dense_seconds, self.chosen_seconds)


@dataclass(frozen=True)
class LayerTuning:
    """One factored layer.

    Parameters
    ----------
    name, places
        Qualified names: the first one, and all.
    kind : str
        The type that it stands for.
    format, rank
        Of its factors.
    device_key : str
        What the times depend on.
    timings : tuple of BucketTiming
        One for each bucket of rows, ascending; none where no example reached the layer.
    replaced : bool
        Whether torch's dense layer has taken its place.
    frozen : bool
        Whether it keeps its dense weight from now on.
    note : str
        Why not, where that was asked for and dense was fastest; else empty.
    factor_bytes : int
        Of the factors.
    dense_bytes : int
        Of the dense weight, which a frozen layer keeps as well.
    by_columns : tuple of str
        Its parameters that lie in memory by columns, since that was faster.
    """

    name: str
    places: tuple[str, ...]
    kind: str
    format: str
    rank: int | tuple[int, ...]
    device_key: str
    timings: tuple[BucketTiming, ...]
    replaced: bool
    frozen: bool
    note: str
    factor_bytes: int
    dense_bytes: int
    by_columns: tuple[str, ...] = ()

    @property
    def reached(self) -> bool:
        """Whether an example came through it."""
        return bool(self.timings)

    @property
    def dense_wins(self) -> bool:
        """Whether dense is fastest in every bucket."""
        return self.reached and all(one.dense_wins for one in self.timings)

    @property
    def runs_dense(self) -> bool:
        """Whether it keeps its factors and yet takes the path "dense" in every bucket."""
        chosen = {one.chosen for one in self.timings}
        return not self.replaced and chosen == {"dense"}

    @property
    def resident_bytes(self) -> int:
        """That the weight takes in memory, as the layer is now."""
        if self.replaced:
            return self.dense_bytes
        return self.factor_bytes + self.dense_bytes * self.frozen

    @property
    def dense_seconds(self) -> float:
        """Over all calls, with torch's own layer."""
        return math.fsum(one.calls * one.dense_seconds for one in self.timings)

    @property
    def chosen_seconds(self) -> float:
        """Over all calls, as the layer is now: torch's own where it was replaced."""
        if self.replaced:
            return self.dense_seconds
        return math.fsum(one.calls * one.chosen_seconds for one in self.timings)

    @property
    def ratio(self) -> float:
        """Dense time over chosen time, NaN where nothing was measured."""
        return _ratio(self.dense_seconds, self.chosen_seconds)


@dataclass(frozen=True)
class WholeTiming:
    """Whole passes of the model over all examples, under several choices for its layers.

    A layer alone is measured with its weights and inputs in cache, and what it gains there may be
    lost between the others; so the choices are tried together.

    Parameters
    ----------
    seconds : Mapping
        Name of a choice -> median time of the passes. "fastest alone": every layer on the path that
        was fastest by itself; "gain > 10%": so, but dense where that was faster by no more than
        this; "all dense": the path "dense" everywhere. Choices that come out the same are measured
        once.
    chosen : str
        The fastest; of those that are as fast within the noise, the smallest in memory. All dense
        where the pairs did not confirm it.
    pairs : float or None
        Time of the fastest over that of all dense, median over pairs of passes that were run after
        it had been found; None where it is all dense.
    """

    seconds: Mapping[str, float]
    chosen: str
    pairs: float | None = None

    @property
    def ratio(self) -> float:
        """Time all dense over time chosen."""
        return _ratio(self.seconds[ALL_DENSE], self.seconds[self.chosen])


@dataclass(frozen=True)
class RecurrenceTiming:
    """A recurrent module: seconds of a call by either way, and which one was kept."""

    name: str
    seconds: Mapping[str, float]
    chosen: str


@dataclass(frozen=True)
class Tuning:
    """The result of `tune`.

    `dense_seconds` and `chosen_seconds` are sums over the calls that the examples make of the
    factored layers, each as long as the one that was measured in its bucket; what lies between the
    layers is in `whole` only. Prints itself as a table; `to_json()`.

    Parameters
    ----------
    objective : str
        As given.
    examples : int
        Number of batches that the model was run on.
    layers : tuple of LayerTuning
        Every factored layer, once, in the order of the model.
    recurrences : tuple of RecurrenceTiming
        How recurrent modules go from step to step.
    whole : WholeTiming or None
        Passes of the whole model; None where dense was chosen for every layer alone.
    """

    objective: str
    examples: int
    layers: tuple[LayerTuning, ...]
    whole: WholeTiming | None = None
    recurrences: tuple[RecurrenceTiming, ...] = ()

    @property
    def dense_seconds(self) -> float:
        """Of all calls, with torch's own layers."""
        return math.fsum(layer.dense_seconds for layer in self.layers)

    @property
    def chosen_seconds(self) -> float:
        """Of all calls, as the layers are now."""
        return math.fsum(layer.chosen_seconds for layer in self.layers)

    @property
    def ratio(self) -> float:
        """Dense time over chosen time: above 1 the layers are faster than the dense ones."""
        return _ratio(self.dense_seconds, self.chosen_seconds)

    @property
    def resident_bytes(self) -> int:
        """That the weights of the factored layers take in memory, as they are now."""
        return sum(layer.resident_bytes for layer in self.layers)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Layers that keep their dense weight, and do not see writes through `.data`."""
        return tuple(layer.name for layer in self.layers if layer.frozen)

    @property
    def not_reached(self) -> tuple[str, ...]:
        """Layers that no example came through; they keep the path table that they had."""
        return tuple(layer.name for layer in self.layers if not layer.reached)

    @property
    def replaced(self) -> tuple[str, ...]:
        """Layers that are torch's dense ones now."""
        return tuple(layer.name for layer in self.layers if layer.replaced)

    def layer(self, name: str) -> LayerTuning:
        """What is known of a layer, by any of its names. Raises KeyError."""
        for layer in self.layers:
            if name in layer.places:
                return layer
        raise KeyError(name)

    def to_json(self) -> str:
        """As JSON text, the totals included."""
        values = {
            "version": FORMAT_VERSION,
            **asdict(self),
            "dense_seconds": self.dense_seconds,
            "chosen_seconds": self.chosen_seconds,
            "resident_bytes": self.resident_bytes,
            "not_reached": self.not_reached,
        }
        return json.dumps(values, allow_nan=False)

    def __str__(self) -> str:
        return as_text(self.__rich__(), WIDTH)

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        paths = list(dict.fromkeys(p for layer in self.layers for p in _paths(layer)))
        examples = f"{self.examples} example" + ("" if self.examples == 1 else "s")
        title = f"tune, objective {self.objective}, {examples}, ms a call"
        table = Table(title=title, title_justify="left")
        for name in ("layer", "kind", "format"):
            table.add_column(name, no_wrap=True)
        for name in ("rank", "rows", "calls", "torch dense", *paths):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("chosen", no_wrap=True)
        table.add_column("dense / chosen", justify="right", no_wrap=True)
        for layer in self.layers:
            for cells in _rows(layer, paths):
                table.add_row(*(Text(printable(cell)) for cell in cells))
        return Group(table, *(Text(printable(line)) for line in self._lines()))

    def _lines(self) -> list[str]:
        """What the table does not say, a line each."""
        lines = []
        if self.dense_seconds:
            lines.append(
                f"all calls of the factored layers: {self.dense_seconds * 1e3:.4g} ms dense, "
                f"{self.chosen_seconds * 1e3:.4g} ms as they are now ({self.ratio:.2f}x)"
            )
        if self.whole:
            times = ", ".join(f"{t * 1e3:.4g} ms {name}" for name, t in self.whole.seconds.items())
            pairs = self.whole.pairs
            told = "" if pairs is None else f", the fastest {1 / pairs:.2f}x all dense in pairs"
            lines.append(
                f"whole model: {times}; kept: {self.whole.chosen} ({self.whole.ratio:.2f}x all "
                f"dense{told})"
            )
        for one in self.recurrences:
            times = ", ".join(f"{t * 1e3:.4g} ms {way}" for way, t in one.seconds.items())
            lines.append(f"recurrence of {one.name or 'the model'}: {times}; kept: {one.chosen}")
        dense = sum(layer.dense_bytes for layer in self.layers)
        lines.append(
            f"weights of the factored layers in memory: {self.resident_bytes:,} bytes, all dense "
            f"{dense:,}"
        )
        laid = [layer.name for layer in self.layers if layer.by_columns]
        if laid:
            lines.append(f"tall factors by columns in memory, which is faster here: {_some(laid)}")
        if self.frozen:
            lines.append(
                f"frozen on their dense weights: {_some(self.frozen)}; their factors win no time "
                "there. Files keep the factors alone. Writes through .data are not seen until "
                "train() or thaw()"
            )
        rebuilt = [layer.name for layer in self.layers if layer.runs_dense and not layer.frozen]
        if rebuilt:
            lines.append(
                f"run dense, rebuilding their weights in each call: {_some(rebuilt)}; their "
                "factors win no time here"
            )
        if self.replaced:
            lines.append(f"torch's dense layers again: {_some(self.replaced)}")
        lines += [f"{layer.name}: {layer.note}" for layer in self.layers if layer.note]
        if self.not_reached:
            lines.append(
                f"not reached by any example, left as they were: {_some(self.not_reached)}"
            )
        return lines


def _paths(layer: LayerTuning) -> Iterable[str]:
    return (path for one in layer.timings for path in one.seconds)


def _rows(layer: LayerTuning, paths: list[str]) -> list[list[str]]:
    """The cells of a layer: a line for each bucket, none where it was not reached."""
    rank = ", ".join(map(str, layer.rank)) if isinstance(layer.rank, tuple) else str(layer.rank)
    lines = []
    for one in layer.timings:
        times = [f"{one.seconds[p] * 1e3:.4f}" if p in one.seconds else "-" for p in paths]
        chosen, ratio = one.chosen, f"{one.ratio:.2f}"
        if layer.replaced:
            chosen, ratio = "torch dense", "1.00"
        lines.append(
            [
                *(layer.name, layer.kind, layer.format, rank, f"{one.rows:,}", f"{one.calls:,}"),
                *(f"{one.dense_seconds * 1e3:.4f}", *times, chosen, ratio),
            ]
        )
    return lines


def _ratio(dense: float, chosen: float) -> float:
    return dense / chosen if chosen else math.nan


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
