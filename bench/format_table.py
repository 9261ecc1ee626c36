"""The rows of `bench/formats.py` in words: a summary by format, the goal, and every row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.format_rows import FormatRow
from bench.report import geometric_mean

TITLE = "Formats on real layers"
ABOUT = (
    "Each weight is brought to the same share of its parameters in every format (an upper bound: "
    "formats with coarse ranks keep less), once by itself (plain) and once in the metric of its "
    "calibration inputs (data-aware). Output errors are relative and on held-out inputs. FLOPs are "
    "those of the chain over the dense layer's; speed is the dense layer's time over that of the "
    "fastest factored path, in turn, on the layer's own input. Iterations of the fits are bounded, "
    "see bench/format_rows.py. float32."
)


def markdown(rows: Sequence[FormatRow], machine: dict[str, Any], notes: Sequence[str]) -> str:
    """The whole of formats.md."""
    about = ", ".join(f"{name} {value}" for name, value in machine.items() if value is not None)
    parts = [f"# {TITLE}", about, " ".join([ABOUT, *notes]), goal(rows)]
    parts += ["## Summary", "\n".join(summary(rows)), "## All rows", "\n".join(every(rows))]
    return "\n\n".join(parts) + "\n"


def goal(rows: Sequence[FormatRow]) -> str:
    """In how many rows the data-aware fit is the better one, and which are not so."""
    failing = [row for row in rows if not row.holds]
    line = f"Data-aware below plain on held-out inputs: {len(rows) - len(failing)} of {len(rows)}"
    if not failing:
        return f"{line} rows."
    named = "; ".join(f"{row.key} ({row.aware:.4f}, plain {row.plain:.4f})" for row in failing)
    return f"{line} rows. Not so: {named}."


def summary(rows: Sequence[FormatRow]) -> list[str]:
    """A table: one line a model, share and format, errors as means over the layers, ratios as
    geometric means; the least data-aware error of a model and share is bold."""
    head = "| model | share | format | layers | kept | weight error | output error, plain | "
    lines = [
        head + "output error, data-aware | FLOPs | speed | fits |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for group in _grouped(rows):
        # Formats of convolutions of one element stand apart from the others, on other layers.
        layers = max(len(members) for members in group.values())
        whole = {f: members for f, members in group.items() if len(members) == layers}
        best = min(_mean([row.aware for row in members]) for members in whole.values())
        for format, members in group.items():
            first, aware = members[0], _mean([row.aware for row in members])
            shown = f"**{aware:.3f}**" if format in whole and aware == best else f"{aware:.3f}"
            lines.append(
                f"| {first.model} | {first.share:g} | {format} | {len(members)} | "
                f"{_mean([row.kept for row in members]):.3f} | "
                f"{_mean([row.weight_error for row in members]):.3f} | "
                f"{_mean([row.plain for row in members]):.3f} | {shown} | "
                f"{geometric_mean([row.flops for row in members]):.3f} | "
                f"{geometric_mean([row.speedup for row in members]):.2f}x | "
                f"{sum(row.plain_s + row.aware_s for row in members):.1f} s |"
            )
    return lines


def every(rows: Sequence[FormatRow]) -> list[str]:
    """A table with all rows."""
    head = "| layer | shape | share | format | kept | weight error | output error, plain | "
    lines = [
        head + "data-aware | (calibration) | FLOPs | dense | best path | speed | plain fit | "
        "data-aware fit |",
        "| " + " | ".join(["---"] * 15) + " |",
    ]
    for row in rows:
        mark = "" if row.holds else " (!)"
        lines.append(
            f"| {row.model} {row.layer} | {'x'.join(map(str, row.shape))} | {row.share:g} | "
            f"{row.format} | {row.kept:.3f} | {row.weight_error:.4f} | {row.plain:.4f} | "
            f"{row.aware:.4f}{mark} | {row.calibrated:.4f} | {row.flops:.3f} | "
            f"{row.dense_s * 1e3:.2f} ms | {row.path} {row.path_s * 1e3:.2f} ms | "
            f"{row.speedup:.2f}x | {row.plain_s:.2f} s | {row.aware_s:.2f} s |"
        )
    return lines


def _grouped(rows: Sequence[FormatRow]) -> list[dict[str, list[FormatRow]]]:
    """Rows of a model and share by format, linear layers and kernels of each kind apart."""
    groups: dict[tuple[str, float, str], dict[str, list[FormatRow]]] = {}
    for row in rows:
        group = groups.setdefault((row.model, row.share, _kind(row.shape)), {})
        group.setdefault(_named(row), []).append(row)
    return list(groups.values())


def _kind(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape[2:]))


def _named(row: FormatRow) -> str:
    kernel = _kind(row.shape)
    return f"{row.format}, {kernel}" if kernel else row.format


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
