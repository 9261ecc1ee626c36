"""What layers take in memory while they are calibrated and fitted, told before anything is
allocated; and the form of moments with which each of them stays within a limit."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tensorlrf.compression.calibration._correction import lag_bytes
from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.calibration._free_memory import free_bytes
from tensorlrf.compression.calibration.moments._form import COUNTS, FULL, IMAGE, Form
from tensorlrf.compression.calibration.moments._moments import moment_bytes
from tensorlrf.compression.group._group import ALONE, Alone
from tensorlrf.compression.report._memory import LayerMemory, MemoryForecast
from tensorlrf.errors import ArgumentError, is_out_of_memory

AT_ONCE_BYTES = 1 << 29
"""Moments of all layers at once that are alive together (512 MB), of one layer at the least."""

WEIGHTS, COPIES = 6, 1
"""In a fit that multiplies by moments, more or less: copies of the weight, and of moments beside
those that are given."""

IN_MATRIX = 20, 4
"""The same of methods that take moments as a matrix. Blocks of low rank take the most, but for
trains of small weights, which solve for whole cores."""

OTHERS = 3
"""Further copies of the weight where there are inputs held out."""

METRIC = 28
"""Bytes for each of the outputs squared, where these have a metric: it in float32, and in a fit it,
its Cholesky factor and a product in float64."""

LEAST_ROWS = 16
"""Of a sketch: fewer tell little more than the variances."""

Layers = Mapping[str, DenseLayer]


@dataclass(frozen=True)
class Need:
    """Of one layer, in bytes at the most; the model, the batches and activations come on top.

    form     of its second moments; None where none are gathered
    moments  of the inputs to fit to and of those held out, as sums and as what is made of them
    lags     of what the layers before it have lost
    work     the moments and copies of them and of the weight, while it is fitted
    weighed  whether its outputs have a metric in it
    """

    form: Form | None
    moments: int
    lags: int
    work: int
    weighed: bool = False

    @property
    def whole(self) -> int:
        """Sums are given up before the fit."""
        return self.lags + max(self.moments, self.work)


@dataclass(frozen=True)
class Gathered:
    """What calibration gathers of every layer.

    lags     whether what earlier layers lose is gathered too
    held     whether there are inputs held out
    waiting  batches whose activations are alive at once
    weighed  layers whose outputs have a metric
    stacked  layers that are experts of a mixture, beside whose moments there are those of all
    plain    whether fits are to the layer's own outputs, of which its weight may make the sketch
    """

    lags: bool
    held: bool
    waiting: int = 1
    weighed: Collection[str] = ()
    stacked: Collection[str] = ()
    plain: bool = False

    def need(
        self,
        layer: DenseLayer,
        form: Form | None = FULL,
        *,
        as_matrix: bool = False,
        weighed: bool = False,
        stacked: bool = False,
    ) -> Need:
        """Of a layer with moments in a form; `as_matrix` where its method takes all n^2 of them."""
        times, beside = IN_MATRIX if as_matrix else (WEIGHTS, COPIES)
        n, weights = layer.columns, (times + OTHERS * self.held) * math.prod(layer.shape)
        if form is None:
            return Need(None, 0, 0, 8 * weights)
        form = COUNTS if layer.is_table else form
        copies = (1 + self.held) * layer.groups
        lags = lag_bytes((layer.shape[0] // layer.groups, *layer.shape[1:]), layer.taps)
        lags = 0 if layer.is_table else lags
        matrices = (1 + self.held) * form.numbers(n)
        in_whole = as_matrix and not layer.is_table  # whatever they are held as
        matrices += beside * (n * n if in_whole else form.numbers(n))
        work = 8 * (weights + layer.groups * matrices)
        work += weighed * METRIC * layer.shape[0] ** 2 // layer.groups
        moments = copies * moment_bytes(layer, form) + stacked * 8 * form.numbers(n)
        return Need(form, moments, self.lags * copies * lags, work, weighed)

    def within(
        self,
        layers: Layers,
        limit: int | None,
        matrix: Collection[str] = (),
        group: Alone = ALONE,
    ) -> dict[str, Need]:
        """Of each layer, with the most of its moments that it has room for: all of them, or the
        largest sketch, which serves better than blocks of as many bytes (bench/sketches.py). Where
        no limit is given it is half of the memory that is free, and a layer that is too large even
        so has no moments.

        matrix  layers whose method takes moments as a matrix
        group   of ranks with room for as much as the one with the least of it

        Raises ArgumentError for a given limit below what a layer takes at the least.
        """
        needs: dict[str, Need] = {}
        least: dict[str, Need] = {}
        for name, layer in layers.items():
            free = group.least(free_bytes(layer.device) / group.beside) if limit is None else 0.0
            room = free / 2 if limit is None else limit
            forms = forms_of(layer, plain=self.plain)
            # A metric of the outputs goes before any of the moments.
            ways = (True, False) if name in self.weighed else (False,)
            tried = [
                self.need(
                    layer,
                    form,
                    as_matrix=name in matrix,
                    weighed=weighed,
                    stacked=name in self.stacked,
                )
                for form in forms
                for weighed in ways
            ]
            found = next((need for need in tried if need.whole <= room), None)
            needs[name] = self.need(layer, None) if found is None else found
            if found is None:
                least[name] = min(tried, key=lambda need: need.whole)
        if least and limit is not None:
            name = max(least, key=lambda name: least[name].whole)
            need, n = least[name], layers[name].columns
            raise ArgumentError(
                f"memory_limit={limit} is below what {name} takes at the least, "
                f"{readable(need.whole)} (n = {n:,} columns, second moments: {need.form}); give "
                f"memory_limit={need.whole}, or skip=[{name!r}]"
            )
        return needs

    def told(self, layers: Layers, needs: Mapping[str, Need], limit: int | None) -> Iterator[str]:
        """Of layers that have not all of their moments."""
        allowed = "half of the free memory" if limit is None else f"memory_limit={limit}"
        sketched, plain = [], []
        for name, need in needs.items():
            size = readable(self.need(layers[name], weighed=name in self.weighed).whole)
            if need.form is None:
                plain.append(f"{name} ({size})")
            elif need.form not in (FULL, COUNTS):
                kept = "an {}" if need.form.kind == IMAGE else "a {} rows"
                sketched.append(
                    f"{name} ({size}; {readable(need.whole)} as {kept.format(need.form)})"
                )
        if sketched:
            yield (
                f"calibration: with all second moments {some(sketched)} would take more than "
                f"{allowed}: sketches serve there; give more by memory_limit=, or skip= them"
            )
        if plain:
            yield (
                f"calibration: {some(plain)} would take more than {allowed}, with a sketch of the "
                "second moments too: the plain method is used there; give more by memory_limit=, "
                "or skip= them"
            )

    def forecast(
        self,
        layers: Layers,
        needs: Mapping[str, Need],
        limit: int | None,
        inputs: Mapping[str, Sequence[Sequence[int]]],
    ) -> MemoryForecast:
        """As a value, with what the first batch tells of `inputs`, the shapes of each layer."""
        rows = []
        for name, need in needs.items():
            layer = layers[name]
            numbers = sum(map(math.prod, inputs.get(name, [])))
            alive = self.waiting * (1 + self.lags) * numbers * layer.module.weight.element_size()
            form = "none" if need.form is None else str(need.form)
            rows.append(
                LayerMemory(name, layer.columns, form, need.moments, need.lags, need.work, alive)
            )
        return MemoryForecast(limit, tuple(rows))


def parted(sizes: Mapping[str, int], room: int) -> list[list[str]]:
    """Names one after the other in parts of no more than `room` bytes, of one name at the least."""
    parts: list[list[str]] = []
    left = 0
    for name, size in sizes.items():
        if not parts or size > left:
            parts.append([])
            left = room
        parts[-1].append(name)
        left -= size
    return parts


def forms_of(layer: DenseLayer, *, plain: bool) -> list[Form]:
    """In which the second moments of a layer may be kept, from the best to the smallest; `plain` as
    in `Gathered`."""
    if layer.is_table:
        return [COUNTS]
    sketches = [Form("sketch", rows) for rows in sketch_sizes(layer.columns)]
    return [FULL, *(images(layer) if plain else ()), *sketches]


def sketch_sizes(n: int) -> list[int]:
    """Rows that a sketch of n columns may have, falling. With more than n / 16 it takes longer than
    all products."""
    sizes = []
    size = LEAST_ROWS
    while 16 * size <= n:
        sizes.append(size)
        size *= 2
    return sizes[::-1]


def images(layer: DenseLayer) -> list[Form]:
    """Sketches of a linear layer's moments by its weight, from all of its outputs down to half of
    them, that take less than the moments themselves: a fit to them is hardly worse, or not at all
    (bench/moments.py)."""
    if layer.taps is not None or layer.is_table:
        return []
    outputs, n = layer.shape[0], layer.columns
    forms = [Form(IMAGE, outputs * k // 4) for k in (4, 3, 2)]
    return [form for form in forms if form.size and 2 * form.numbers(n) < FULL.numbers(n)]


@contextmanager
def named_where_memory_ends(name: str, layer: DenseLayer, form: Form = FULL) -> Iterator[None]:
    """Have what is too large for the memory tell the layer that it is for."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        size = readable(layer.groups * moment_bytes(layer, form))
        raise ArgumentError(
            f"calibration: memory ends at the second moments of {name}, which take {size} "
            f"(n = {layer.columns:,} columns). Give memory_limit=, above which a layer's moments "
            f"are sketched; or rerun=True, smaller batches, or skip=[{name!r}]"
        ) from error


def readable(size: float) -> str:
    """1.5 GB for 1.5e9."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def some(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
