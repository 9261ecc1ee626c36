"""A frontier as a section of a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tensorlrf.compression._words import bytes_words
from tensorlrf.compression.frontier._point import DENSE, FACTORS, FrontierPoint
from tensorlrf.compression.page.charts import Axis, Point, Series, chart
from tensorlrf.compression.page.document import Section
from tensorlrf.compression.page.markup import Markup, element
from tensorlrf.compression.page.parts import bullets, note
from tensorlrf.compression.page.tables import NAME, NUMBER, Cell, Number, table
from tensorlrf.compression.report._quality import Judged

MARKS = ("diamond", "triangle", "down")

COLUMNS = (
    ("Model", NAME),
    ("Share", NUMBER),
    ("Parameters", NUMBER),
    ("Bytes", NUMBER),
    ("Predicted loss", NUMBER),
    ("Held-out loss", NUMBER),
    ("Metric", NUMBER),
    ("Drop", NUMBER),
    ("At most", NUMBER),
    ("Promised ms", NUMBER),
    ("ms", NUMBER),
)
TIMES = 2
"""Columns at the end, of latencies."""


def frontier_section(
    points: Sequence[FrontierPoint],
    unit: str,
    timed: bool,
    lines: Sequence[str],
    by: Judged,
) -> Section:
    """What models of every size are worth: over bytes, and over time where that is known."""
    judged = any(p.quality is not None for p in points if p.kind == FACTORS)
    said = (
        f"{'Higher' if by.larger_is_better else 'Lower'} is better; a line from a point goes to "
        "what it may be with 95% confidence."
        if judged
        else f"The loss on inputs held out, in {unit}: lower is better."
    )
    label = by.name if judged else f"loss on inputs held out ({unit})"
    drawn = [
        _chart(
            "frontier-bytes",
            "Over its size",
            "MB",
            lambda p: p.bytes / 1e6,
            points,
            judged,
            label,
            by,
        )
    ]
    if sum(p.seconds is not None for p in points) > 1:
        drawn.append(
            _chart(
                "frontier-time", "Over the time of a pass", "ms",
                lambda p: None if p.seconds is None else p.seconds * 1e3, points, judged, label, by,
            )
        )  # fmt: skip
    listed = table(
        "frontier-table",
        f"Every model that was looked at; losses in {unit}.",
        COLUMNS[: None if timed else -TIMES],
        (_cells(p)[: None if timed else -TIMES] for p in points),
    )
    parts = [note(said), element("div", {"class": "charts"}, *drawn), listed]
    parts += [bullets(lines)] if lines else []
    return Section("frontier", "What a model of every size is worth", tuple(parts))


def _chart(
    name: str,
    caption: str,
    unit: str,
    of: Callable[[FrontierPoint], float | None],
    points: Sequence[FrontierPoint],
    judged: bool,
    label: str,
    by: Judged,
) -> Markup:
    dense = next((p.quality for p in points if p.kind == DENSE), None)
    found: dict[str, list[Point]] = {}
    for p in points:
        across, up = of(p), p.quality if judged else p.loss
        if across is None or up is None:
            continue
        low = None
        if judged and dense is not None and p.bound is not None and p.kind != DENSE:
            low = min(up, dense - p.bound) if by.larger_is_better else max(up, dense + p.bound)
        called = p.kind if p.share is None else f"{p.share:g}"
        told = f"{called}: {across:.4g} {unit}, {up:.4g}"
        found.setdefault(p.kind, []).append(Point(across, up, low, called, told))
    marks = iter(MARKS * len(found))
    series = [
        Series("line" if kind == FACTORS else "square" if kind == DENSE else next(marks), own)
        for kind, own in sorted(found.items(), key=lambda item: item[0] == FACTORS)
    ]
    told = f"{caption}: {len(points)} models, the numbers of which are in the table below."
    return chart(name, f"{caption}.", told, Axis(unit), Axis(label), series)


def _cells(p: FrontierPoint) -> list[Cell]:
    numbers = (p.predicted, p.loss, p.quality, p.drop, p.bound)
    times = (p.predicted_latency, p.latency)
    return [
        p.kind,
        _number(p.share),
        Number(p.params, f"{p.params:,}"),
        Number(p.bytes, bytes_words(p.bytes)),
        *map(_number, numbers),
        *(_number(None if t is None else t * 1e3) for t in times),
    ]


def _number(value: float | None) -> Number:
    return Number(value, "-" if value is None else f"{value:.4g}")
