"""How plans and reports look: a table for the terminal, and Markdown."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from tensorlrf.compression._plan import LayerPlan, Plan
from tensorlrf.compression._report import LayerReport, Report, Totals
from tensorlrf.errors import printable

Header = tuple[tuple[str, str], ...]

HEADER: Header = (
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
PLAN_HEADER: Header = (
    ("layer", "left"),
    ("kind", "left"),
    ("weight", "right"),
    ("method", "left"),
    ("rank", "right"),
    ("parameters", "right"),
    ("kept", "right"),
)
WIDTH = 200

MOST_ROWS = 2000
"""Of a table; to lay one out takes about a millisecond a row."""


def rich_view(report: Report) -> Group:
    """The table of factored layers, the totals, and what stays."""
    return _view(_title(report), HEADER, _rows(report), [*_totals(report), *_staying(report)])


def rich_plan(plan: Plan) -> Group:
    """The table of layers that get factors, the totals, and what stays."""
    return _view(_plan_title(plan), PLAN_HEADER, _plan_rows(plan), _plan_lines(plan))


def _view(title: str, header: Header, rows: Sequence[Sequence[str]], lines: list[str]) -> Group:
    table = Table(title=Text(printable(title)), title_justify="left")
    for name, side in header:
        table.add_column(name, justify="left" if side == "left" else "right", no_wrap=True)
    for cells in rows[:MOST_ROWS]:
        table.add_row(*(Text(printable(cell)) for cell in cells))
    more = [f"and {len(rows) - MOST_ROWS:,} more; the JSON has all"] if rows[MOST_ROWS:] else []
    return Group(table, *(Text(printable(line)) for line in [*more, *lines]))


def plain(value: Any) -> str:
    """What rich shows, as text without colours."""
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(value)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def markdown(report: Report) -> str:
    """The same in Markdown."""
    return _markdown(_title(report), HEADER, _rows(report), [_totals(report), _staying(report)])


def markdown_plan(plan: Plan) -> str:
    """A plan in Markdown."""
    return _markdown(_plan_title(plan), PLAN_HEADER, _plan_rows(plan), [_plan_lines(plan)])


def _markdown(
    title: str, header: Header, rows: Sequence[Sequence[str]], lists: Sequence[list[str]]
) -> str:
    rules = ["---" if side == "left" else "---:" for _, side in header]
    lines = [[name for name, _ in header], rules, *rows]
    cells = ([printable(cell).replace("|", "\\|") for cell in row] for row in lines)
    table = ["| " + " | ".join(row) + " |" for row in cells]
    told = ([f"- {printable(line)}" for line in one] for one in lists)
    blocks = [[f"**{printable(title)}**"], table, *told]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _budget(keep_params: float | None, error: float | None) -> str:
    if keep_params is not None:
        return f"keep_params {keep_params:g}"
    return "ranks of its own" if error is None else f"error {error:g}"


def _title(report: Report) -> str:
    """The budget, what the whole model keeps, and what the fit is made of."""
    data = "no calibration"
    if report.batches:
        held = f" and {report.held_out} held out" if report.held_out else ""
        affine = ", affine" if report.affine else ""
        data = f"{report.batches} calibration batches{held}, target {report.target}{affine}"
    kept = f"the whole model keeps {report.model.share:.1%}"
    return f"{_budget(report.keep_params, report.error)} ({kept}), {data}"


def _plan_title(plan: Plan) -> str:
    return f"plan, {_budget(plan.keep_params, plan.error)}, architecture {plan.architecture[:12]}"


def _plan_rows(plan: Plan) -> list[list[str]]:
    return [_plan_cells(row) for row in plan.factored]


def _plan_cells(row: LayerPlan) -> list[str]:
    after = row.params_after
    at_most = row.method is not None and isinstance(row.method.rank, float)
    method = row.method
    assert method is not None
    rank = _rank(row.rank) if row.rank is not None else "?"
    if method.error is not None:
        rank = f"error {method.error:g}"
    return [
        row.name,
        row.kind if row.groups == 1 else f"{row.kind}, {row.groups} groups",
        " x ".join(map(str, row.shape)),
        str(method),
        rank,
        f"{row.params:,} to " + ("?" if after is None else f"{after:,}"),
        "?" if after is None else ("<= " if at_most else "") + f"{after / row.params:.1%}",
    ]


def _plan_lines(plan: Plan) -> list[str]:
    rows = [row for row in plan.layers if row.eligible]
    before = sum(row.params for row in rows)
    after = [row.params_after for row in rows]
    lines = []
    if all(n is not None for n in after):
        total = sum(n for n in after if n is not None)
        share = total / before if before else 1.0
        lines.append(f"eligible weights: {before:,} to {total:,} parameters ({share:.1%})")
    else:
        lines.append(f"eligible weights: {before:,} parameters; the fit decides the ranks")
    return [*lines, *_stay(plan.layers, "params")]


def _rows(report: Report) -> list[list[str]]:
    return [_cells(row) for row in report.layers if row.factored]


def _cells(row: LayerReport) -> list[str]:
    flops = "-"
    if row.flops_before is not None and row.flops_after is not None:
        flops = f"{_short(row.flops_before)} to {_short(row.flops_after)}"
    return [
        row.name,
        row.kind,
        _format(row),
        _rank(row.rank),
        f"{row.params_before:,} to {row.params_after:,}",
        f"{row.share:.1%}",
        flops,
        _error(row.weight_error),
        _error(row.output_error) + ("" if row.output_error is None or row.held_out else " (fit)"),
        row.path or "-",
    ]


def _format(row: LayerReport) -> str:
    parts = [str(row.format)]
    if row.data_aware:
        drawn = f" ({row.shrinkage:.2g} shrunk)" if (row.shrinkage or 0.0) >= 0.005 else ""
        parts.append("data-aware" + drawn)
    if row.bias:
        parts.append(f"bias {row.bias}")
    return ", ".join(parts)


def _rank(rank: Any) -> str:
    return ", ".join(map(str, rank)) if isinstance(rank, tuple) else str(rank)


def _totals(report: Report) -> list[str]:
    asked = ""
    if report.keep_params is not None:
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
    if report.model_error is not None:
        lines.append(f"model outputs: relative error {report.model_error:.3g} on held-out batches")
    norms = report.batch_norms
    if norms is not None:
        verb = "kept" if norms.kept else "tried and dropped"
        lines.append(
            f"batch normalisation: new statistics of {norms.count} {verb}, held-out error "
            f"{norms.error_before:.3g} before and {norms.error_after:.3g} after"
        )
    added = [row.name for row in report.layers if row.bias == "added"]
    if added:
        lines.append(f"biases added to layers that had none: {', '.join(added)}")
    if report.latency is not None:
        dense, small = report.latency.dense, report.latency.compressed
        lines.append(
            f"latency on the example: {dense * 1e3:.3g} ms dense, {small * 1e3:.3g} ms compressed, "
            f"{dense / small:.2f}x"
        )
    return lines


def _change(totals: Totals, asked: str) -> str:
    return (
        f"{totals.params_before:,} to {totals.params_after:,} parameters ({totals.share:.1%}"
        f"{asked}), {_bytes(totals.bytes_before)} to {_bytes(totals.bytes_after)}"
    )


def _staying(report: Report) -> list[str]:
    return _stay(report.layers, "params_before")


def _stay(layers: Sequence[Any], params: str) -> list[str]:
    """A line for each layer that stays; modules of no format are put together by their type."""
    lines = []
    together: dict[tuple[str, str], list[Any]] = {}
    for row in layers:
        if row.factored:
            continue
        if "Linear" in row.kind or "Conv" in row.kind or row.eligible:
            lines.append(f"stays: {row.name} ({row.kind}, {getattr(row, params):,}): {row.reason}")
        else:
            together.setdefault((row.kind, row.reason), []).append(row)
    for (kind, reason), rows in together.items():
        numbers = sum(getattr(row, params) for row in rows)
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
