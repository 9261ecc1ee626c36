"""How refinement went, as a section of a page."""

from __future__ import annotations

from collections.abc import Sequence

from tensorlrf.compression.page.charts import Axis, Point, Series, chart
from tensorlrf.compression.page.document import Section
from tensorlrf.compression.page.parts import bullets, paragraph
from tensorlrf.compression.page.tables import NAME, NUMBER, WORDS, Cell, Number, table

COLUMNS = (
    ("Phase", NAME),
    ("Step", NUMBER),
    ("Seconds", NUMBER),
    ("Loss", NUMBER),
    ("Held-out loss", NUMBER),
    ("Outcome", WORDS),
)


def refinement_section(
    title: str,
    unit: str,
    curve: Sequence[tuple[str, float, float, bool]],
    rows: Sequence[Sequence[str]],
    lines: Sequence[str],
) -> Section:
    """With a picture where two states or more were judged.

    curve  (phase, seconds, held-out loss, whether it was kept) of each state
    rows   the cells of the table, as texts
    """
    parts = [paragraph(f"{title[:1].upper()}{title[1:]}.")]
    if len(curve) > 1:
        dots = [
            Point(s, loss, told=f"{phase}, {s:.1f} s: {loss:.4g}" + ", kept" * kept)
            for phase, s, loss, kept in curve
        ]
        least, falls = float("inf"), []
        for dot in dots:
            least = min(least, dot.y)
            falls.append(Point(dot.x, least))
        kept = [dot for dot, (*_, held) in zip(dots, curve, strict=True) if held]
        others = [dot for dot, (*_, held) in zip(dots, curve, strict=True) if not held]
        parts.append(
            chart(
                "refinement-curve",
                "Held-out loss over seconds; filled dots were kept, the line is the least so far.",
                f"{len(curve)} states; the table below has the numbers.",
                Axis("seconds"),
                Axis(f"held-out loss ({unit})", log=least > 0),
                [Series("step", falls), Series("ring", others), Series("dot", kept)],
            )
        )
    cells: list[list[Cell]] = [
        [row[0], *(Number(_value(cell), cell or "-") for cell in row[1:5]), row[5]] for row in rows
    ]
    parts.append(table("refinement-table", "States that were judged.", COLUMNS, cells))
    parts.append(bullets(lines))
    return Section("refinement", "How refinement went", tuple(parts))


def _value(cell: str) -> float | None:
    return float(cell.replace(",", "")) if cell else None
