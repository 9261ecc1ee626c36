"""How a report looks: a table for the terminal, and Markdown."""

from __future__ import annotations

import io

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from tensorlrf.compression._report import LayerReport, Report, Totals

HEADER = (
    ("layer", "left"),
    ("kind", "left"),
    ("format", "left"),
    ("rank", "right"),
    ("parameters", "right"),
    ("kept", "right"),
    ("FLOPs", "right"),
    ("weight error", "right"),
    ("output error", "right"),
    ("path", "left"),
)
WIDTH = 200


def rich_view(report: Report) -> Group:
    """The table of factored layers, the totals, and what stays."""
    table = Table(title=_title(report), title_justify="left")
    for name, side in HEADER:
        table.add_column(name, justify="left" if side == "left" else "right", no_wrap=True)
    for cells in _rows(report):
        table.add_row(*(Text(cell) for cell in cells))
    lines = [*_totals(report), *_staying(report)]
    return Group(table, *(Text(line) for line in lines))


def plain(report: Report) -> str:
    """`rich_view` as text without colours."""
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(rich_view(report))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def markdown(report: Report) -> str:
    """The same in Markdown."""
    names = [name for name, _ in HEADER]
    rules = ["---" if side == "left" else "---:" for _, side in HEADER]
    rows = [names, rules, *_rows(report)]
    table = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    totals = [f"- {line}" for line in _totals(report)]
    staying = [f"- {line}" for line in _staying(report)]
    blocks = [[f"**{_title(report)}**"], table, totals, staying]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _title(report: Report) -> str:
    data = "no calibration"
    if report.batches:
        data = f"{report.batches} calibration batches, target {report.target}"
    return f"method {report.method}, keep_params {report.keep_params:g}, {data}"


def _rows(report: Report) -> list[list[str]]:
    return [_cells(row) for row in report.layers if row.factored]


def _cells(row: LayerReport) -> list[str]:
    rank = ", ".join(map(str, row.rank)) if isinstance(row.rank, tuple) else str(row.rank)
    flops = "-"
    if row.flops_before is not None and row.flops_after is not None:
        flops = f"{_short(row.flops_before)} to {_short(row.flops_after)}"
    return [
        row.name,
        row.kind,
        f"{row.format}, data-aware" if row.data_aware else str(row.format),
        rank,
        f"{row.params_before:,} to {row.params_after:,}",
        f"{row.share:.1%}",
        flops,
        _error(row.weight_error),
        _error(row.output_error),
        row.path or "-",
    ]


def _totals(report: Report) -> list[str]:
    asked = f", asked for at most {report.keep_params:.1%}"
    lines = [
        "eligible weights: " + _change(report.eligible, asked),
        "whole model: " + _change(report.model, ""),
    ]
    if (flops := report.flops) is not None:
        before, after = flops
        lines.append(
            f"factored layers: {_short(before)} to {_short(after)} FLOPs ({after / before:.1%}) on "
            "the first calibration batch"
        )
    return lines


def _change(totals: Totals, asked: str) -> str:
    return (
        f"{totals.params_before:,} to {totals.params_after:,} parameters ({totals.share:.1%}"
        f"{asked}), {_bytes(totals.bytes_before)} to {_bytes(totals.bytes_after)}"
    )


def _staying(report: Report) -> list[str]:
    """A line for each layer that stays; modules of no format are put together by their type."""
    lines = []
    together: dict[tuple[str, str], list[LayerReport]] = {}
    for row in report.layers:
        if row.factored:
            continue
        if row.kind in ("Linear", "Conv2d") or row.eligible:
            lines.append(f"stays: {row.name} ({row.kind}, {row.params_before:,}): {row.reason}")
        else:
            together.setdefault((row.kind, row.reason), []).append(row)
    for (kind, reason), rows in together.items():
        numbers = sum(row.params_before for row in rows)
        names = rows[0].name if len(rows) == 1 else f"{len(rows)} modules, {rows[0].name} the first"
        lines.append(f"stays: {names} ({kind}, {numbers:,}): {reason}")
    return lines


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _short(number: float) -> str:
    """1.23 G for 1.23e9."""
    for unit in ("", " k", " M", " G", " T"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} P"


def _bytes(number: float) -> str:
    return _short(number) + ("B" if number >= 1000 else " B")
