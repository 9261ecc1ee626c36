"""What is in a model file, as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tensorlrf.compression._words import bytes_words, rank_words, short
from tensorlrf.compression.page.document import Page, Section
from tensorlrf.compression.page.environment import environment_section
from tensorlrf.compression.page.loading import loading_section
from tensorlrf.compression.page.parts import Figure, bullets, figures, note
from tensorlrf.compression.page.tables import LONG, NAME, NUMBER, WORDS, Cell, Number, table

COLUMNS = (
    ("Layer", NAME),
    ("Stands for", WORDS),
    ("Format", WORDS),
    ("Rank", NUMBER),
    ("Shape", WORDS),
    ("Numbers as", WORDS),
    ("Before", NUMBER),
    ("After", NUMBER),
    ("Kept", NUMBER),
    ("How it was made", LONG),
)


class Layer(Protocol):
    """What is read of a `FileLayer`; see there."""

    @property
    def name(self) -> str: ...
    @property
    def stands_for(self) -> str | None: ...
    @property
    def format(self) -> str: ...
    @property
    def rank(self) -> int | tuple[int, ...]: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def params_before(self) -> int: ...
    @property
    def params_after(self) -> int: ...


def file_page(
    title: str,
    date: str | None,
    size: int,
    numbers: tuple[int, int],
    layers: Sequence[Layer],
    plan: Mapping[str, Any],
    lines: Sequence[str],
    saved: str,
) -> Page:
    """Of a file of so many bytes, with the numbers of the dense model and those that it holds."""
    before, after = numbers
    kept = after / before if before else 1.0
    shown = [
        Figure("Numbers kept", f"{kept:.1%}", f"{short(before)} to {short(after)}", kept),
        Figure("Size of the file", bytes_words(size)),
        Figure("Factored layers", f"{len(layers):,}"),
    ]
    said = note(
        "A file tells what the model is made of. What was lost is in the report of `compress`, "
        "which is a page of its own."
    )
    summary = Section("summary", "What the file holds", (figures(shown), said, bullets(lines)))
    sections = [summary]
    if layers:
        listed = table(
            "layers-table",
            "Numbers of the dense weight, and of the factors in its place.",
            COLUMNS,
            (_cells(row, plan.get(row.name)) for row in layers),
            searched="layers",
        )
        sections.append(Section("layers", "The factored layers", (listed,)))
    sections += [loading_section(saved), environment_section(None, date)]
    lead = f"{len(layers):,} layers run on factors; the file keeps {kept:.1%} of all numbers."
    return Page(title, lead, sections)


def _cells(row: Layer, recipe: Any) -> list[Cell]:
    kept = row.params_after / row.params_before if row.params_before else 1.0
    return [
        row.name or "(model)",
        row.stands_for or "-",
        row.format,
        Number(None, rank_words(row.rank)),
        " x ".join(map(str, row.shape)),
        row.dtype,
        Number(row.params_before, f"{row.params_before:,}"),
        Number(row.params_after, f"{row.params_after:,}"),
        Number(kept, f"{kept:.1%}", bar=True),
        _recipe(recipe),
    ]


def _recipe(recipe: Any) -> str:
    """How the factors of a layer were made, as the file says it."""
    method = recipe.get("method") if isinstance(recipe, Mapping) else None
    if not isinstance(method, Mapping):
        return "-"
    chosen = (
        f"{key} {value}"
        for key, value in method.items()
        if key not in ("name", "rank") and value is not None
    )
    parts = [str(method.get("name")), *chosen]
    target = recipe.get("target")
    parts += [f"fitted to inputs, target {target}"] if recipe.get("data_aware") else []
    parts += ["affine"] if recipe.get("affine") else []
    return ", ".join(parts)
