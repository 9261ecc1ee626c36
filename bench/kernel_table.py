"""The kernel table of the README, made from result files.

    python -m bench.kernel_table        rewrites the part of README.md between the two marks

A kernel that no result file has a row of says so: it has been compiled for every chip and run in
Triton's interpreter, and that is all.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from bench.report import geometric_mean

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
BEGIN, END = "<!-- kernels: python -m bench.kernel_table -->", "<!-- kernels end -->"
NOT_TIMED = "compiled and interpreted, not yet timed"

Row = dict[str, Any]


class Kernel(NamedTuple):
    """A kernel, what it does in words, and which rows of a result file it is behind."""

    name: str
    words: str
    timed: Callable[[Row], bool]


def _layer(row: Row) -> bool:
    return row["info"].get("path") == "fused" and bool(row["info"].get("launch"))


def _mlp(row: Row) -> bool:
    return row["variant"] == "fused" and "MLP" in row["case"]


def _conv(row: Row, op: str) -> bool:
    return row["info"].get("path") == "fused" and row["info"].get("op") == op


KERNELS = (
    Kernel(
        "lowrank_linear: decode",
        "M <= 128: split shrink, grid barrier and expand in one launch",
        lambda row: _layer(row) and row["info"]["M"] <= 128,
    ),
    Kernel(
        "lowrank_linear: prefill",
        "M > 128, rank <= 256: the intermediate stays on chip",
        lambda row: _layer(row) and row["info"]["M"] > 128,
    ),
    Kernel(
        "lowrank_linear: backward",
        "rank <= 128: a training step; one pass over dY",
        lambda row: row["variant"] == "fused" and row["case"].startswith("training step"),
    ),
    Kernel(
        "lowrank_swiglu: decode",
        "M <= 128: gate and up together; the whole MLP",
        lambda row: _mlp(row) and row["info"]["M"] <= 128,
    ),
    Kernel(
        "lowrank_swiglu: prefill",
        "M > 128, rank <= 128: the same",
        lambda row: _mlp(row) and row["info"]["M"] > 128,
    ),
    Kernel(
        "lowrank_swiglu: backward",
        "rank <= 64: a training step; one pass over dh",
        lambda row: row["variant"] == "fused" and row["case"].startswith("SwiGLU training step"),
    ),
    Kernel(
        "tucker_conv2d: forward",
        "rank <= 256: kh x kw convolution and the 1 x 1 behind it (Tucker, low rank)",
        lambda row: _conv(row, "tucker_conv2d"),
    ),
    Kernel(
        "cp_conv2d: forward",
        "1 x 1, vertical and horizontal taps, and up to rank 128 the last 1 x 1",
        lambda row: _conv(row, "cp_conv2d"),
    ),
    Kernel(
        "cp_conv2d: taps_backward",
        "the gradients of the taps, all sums in a fixed order",
        lambda row: row["variant"] == "fused" and row["case"].startswith("CP training step"),
    ),
)


def section(folder: Path = RESULTS) -> str:
    """The Markdown table, from every kernels.json below `folder`."""
    lines = [
        "| kernel | what it does | device | over the chain, geometric mean (worst) | over dense "
        "| time over the floor |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*/kernels.json"))]
    for kernel in KERNELS:
        entries = [_entry(kernel, result) for result in results]
        lines += [entry for entry in entries if entry] or [
            f"| `{kernel.name}` | {kernel.words} | {NOT_TIMED} | | | |"
        ]
    return "\n".join(lines)


def _entry(kernel: Kernel, result: dict[str, Any]) -> str | None:
    rows = [row for row in result["rows"] if kernel.timed(row)]
    if not rows:
        return None
    seconds = {(row["case"], row["variant"]): row["median_s"] for row in result["rows"]}
    chain = [_ratio(seconds, row, row["variant"].replace("fused", "chain")) for row in rows]
    dense = [_ratio(seconds, row, "dense") for row in rows]
    floor = [row["info"].get("over_floor") for row in rows]
    cells = [_cell(chain, "x"), _cell(dense, "x"), _cell(floor, "", least=False)]
    device = result["machine"]["device"].removeprefix("NVIDIA ")
    return f"| `{kernel.name}` | {kernel.words} | {device} | " + " | ".join(cells) + " |"


def _ratio(seconds: dict[tuple[str, str], float], row: Row, base: str) -> float | None:
    other = seconds.get((row["case"], base))
    return None if other is None else other / row["median_s"]


def _cell(values: Iterable[float | None], unit: str, *, least: bool = True) -> str:
    found = [value for value in values if value is not None]
    if not found:
        return ""
    worst = min(found) if least else max(found)
    return f"{geometric_mean(found):.2f}{unit} ({worst:.2f}{unit})"


def written(readme: str, folder: Path = RESULTS) -> str:
    """The README with its table made anew. Raises ValueError where the marks are missing."""
    before, mark, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise ValueError(f"README.md lacks the marks {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n{section(folder)}\n{END}{after}"


def main() -> int:
    """The command; returns the exit code."""
    path = ROOT / "README.md"
    temporary = path.with_name(".README.md.part")
    temporary.write_text(written(path.read_text()))
    os.replace(temporary, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
