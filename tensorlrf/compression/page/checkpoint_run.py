"""A run over a checkpoint as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from tensorlrf.compression._words import bytes_words, error_words, rank_words, short
from tensorlrf.compression.page.document import Page, Section
from tensorlrf.compression.page.environment import environment_section
from tensorlrf.compression.page.heat_map import heat_map
from tensorlrf.compression.page.loading import loading_section
from tensorlrf.compression.page.parts import Figure, bullets, figures
from tensorlrf.compression.page.tables import LONG, NAME, NUMBER, WORDS, Cell, Number, table

COLUMNS = (
    ("Layer", NAME),
    ("Shape", WORDS),
    ("Format", WORDS),
    ("Rank", NUMBER),
    ("Before", NUMBER),
    ("After", NUMBER),
    ("Kept", NUMBER),
    ("Weight error", NUMBER),
    ("Output error", NUMBER),
)


class Layer(Protocol):
    """What is read of a `CheckpointLayer`; see there."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def format(self) -> str: ...
    @property
    def rank(self) -> int | tuple[int, ...]: ...
    @property
    def params_before(self) -> int: ...
    @property
    def params_after(self) -> int: ...
    @property
    def weight_error(self) -> float: ...
    @property
    def output_error(self) -> float | None: ...


def run_page(
    title: str,
    date: str | None,
    saved: str,
    layers: Sequence[Layer],
    stays: Mapping[str, str],
    size: tuple[int, int],
    lines: Sequence[str],
) -> Page:
    """Of a run that made so many bytes of so many."""
    before, after = size
    kept = after / before if before else 1.0
    params = sum(row.params_before for row in layers), sum(row.params_after for row in layers)
    told = f"{short(params[0])} to {short(params[1])}"
    left = params[1] / params[0] if params[0] else 1.0
    shown = [
        Figure("Bytes kept", f"{kept:.1%}", f"{bytes_words(before)} to {bytes_words(after)}", kept),
        Figure(
            "Factored weights kept",
            f"{left:.1%}",
            f"{short(params[0])} to {short(params[1])}",
            left,
        ),
    ]
    parts = (figures(shown), bullets(lines))
    sections = [Section("summary", "What was won and what was lost", parts)]
    values = {row.name or "(model)": row.weight_error for row in layers}
    if len(values) > 1:
        caption = "Relative error of the weight: a row for each block, a column for each kind."
        told = "Relative error of the weight of each layer; the table of layers has the numbers."
        drawn = heat_map("error-map", caption, told, values)
        sections.append(Section("errors", "What each layer lost", (drawn,)))
    if layers:
        caption = "Numbers of the weight before and after; errors are relative."
        listed = table("layers-table", caption, COLUMNS, map(_cells, layers), searched="layers")
        sections.append(Section("layers", "The factored layers", (listed,)))
    if stays:
        columns = (("Layer", NAME), ("Why it stayed", LONG))
        rows = ([name or "(model)", why] for name, why in stays.items())
        listed = table("stayed-table", "Every other weight.", columns, rows, searched="modules")
        sections.append(Section("stayed", "Why the others stayed", (listed,)))
    sections += [loading_section(saved), environment_section(None, date)]
    lead = f"{len(layers):,} layers run on factors now; the tensors keep {kept:.1%} of their bytes."
    return Page(title, lead, sections)


def _cells(row: Layer) -> list[Cell]:
    kept = row.params_after / row.params_before if row.params_before else 1.0
    return [
        row.name or "(model)",
        " x ".join(map(str, row.shape)),
        row.format,
        Number(None, rank_words(row.rank)),
        Number(row.params_before, f"{row.params_before:,}"),
        Number(row.params_after, f"{row.params_after:,}"),
        Number(kept, f"{kept:.1%}", bar=True),
        Number(row.weight_error, error_words(row.weight_error)),
        Number(row.output_error, error_words(row.output_error)),
    ]
