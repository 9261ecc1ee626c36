"""The kernel table of docs/kernels.md, made from result files.

    python -m bench.kernel_table        rewrites the part of docs/kernels.md between the two marks

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
PAGE = ROOT / "docs" / "kernels.md"
BEGIN, END = "<!-- kernels: python -m bench.kernel_table -->", "<!-- kernels end -->"
NOT_TIMED = "compiled and interpreted, not yet timed"

Row = dict[str, Any]


class Kernel(NamedTuple):
    """A kernel, what it does in words, which rows of a result file it is behind, and what the
    library does in its place: of several forms the fastest counts."""

    name: str
    words: str
    timed: Callable[[Row], bool]
    library: tuple[str, ...] = ("chain",)


def _layer(row: Row) -> bool:
    own = row["info"].get("op", "lowrank_linear") == "lowrank_linear"
    return own and row["info"].get("path") == "fused" and bool(row["info"].get("launch"))


def _mlp(row: Row) -> bool:
    return row["variant"] == "fused" and "MLP" in row["case"]


def _op(row: Row, op: str) -> bool:
    return row["variant"].startswith("fused") and row["info"].get("op") == op


def _trained(row: Row, format: str) -> bool:
    is_step = row["variant"] == "fused" and row["case"].startswith("training step")
    return is_step and row["info"].get("format") == format


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
        lambda row: _trained(row, "lowrank"),
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
        lambda row: _op(row, "tucker_conv2d"),
    ),
    Kernel(
        "cp_conv2d: forward",
        "1 x 1, vertical and horizontal taps, and up to rank 128 the last 1 x 1",
        lambda row: _op(row, "cp_conv2d"),
    ),
    Kernel(
        "cp_conv2d: taps_backward",
        "the gradients of the taps, all sums in a fixed order",
        lambda row: row["variant"] == "fused" and row["case"].startswith("CP training step"),
    ),
    Kernel(
        "kron_linear: forward",
        "factors of 16 to 128, 16 terms at most: both products of every term, nothing between them "
        "stored; tensor trains that are cut in the middle",
        lambda row: _op(row, "kron_linear"),
    ),
    Kernel(
        "kron_linear: backward",
        "a training step; all sums in a fixed order",
        lambda row: _trained(row, "kron"),
    ),
    Kernel(
        "blr_linear: forward",
        "blocks of unequal rank, trees of them, Monarch and BLAST: two grouped launches, the first "
        "stores where the second reads",
        lambda row: _op(row, "blr_linear"),
        ("chain", "fold"),  # two batched products and a permutation
    ),
    Kernel(
        "blr_linear: backward",
        "a training step; the transposed matrix by the same kernels, panels grouped",
        lambda row: _trained(row, "blr"),
    ),
    Kernel(
        "lowrank_embedding: forward",
        "rows of a low-rank table: gather and expand",
        lambda row: _op(row, "lowrank_embedding"),
    ),
    Kernel(
        "lowrank_embedding: segments",
        "a training step; equal indices added up in a fixed order",
        lambda row: row["variant"] == "fused" and row["case"].startswith("embedding training step"),
    ),
    Kernel(
        "tt_embedding: forward",
        "rows of a tensor train, R <= 64: two small matrices gathered and multiplied",
        lambda row: _op(row, "tt_embedding"),
    ),
    Kernel(
        "mttkrp: forward",
        "orders 3 to 5, float32 and float64: the Khatri-Rao product is never in memory",
        lambda row: _op(row, "mttkrp"),
        ("chain", "two steps", "einsum"),
    ),
    Kernel(
        "sparse_mttkrp: forward",
        "float32 and float64: nonzeros gathered, multiplied and added up by row, in a fixed order",
        lambda row: _op(row, "sparse_mttkrp"),
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
    chain = [
        _ratio(seconds, row, *(row["variant"].replace("fused", way) for way in kernel.library))
        for row in rows
    ]
    dense = [_ratio(seconds, row, "dense") for row in rows]
    floor = [row["info"].get("over_floor") for row in rows]
    cells = [_cell(chain, "x"), _cell(dense, "x"), _cell(floor, "", least=False)]
    device = result["machine"]["device"].removeprefix("NVIDIA ")
    return f"| `{kernel.name}` | {kernel.words} | {device} | " + " | ".join(cells) + " |"


def _ratio(seconds: dict[tuple[str, str], float], row: Row, *bases: str) -> float | None:
    others = [seconds[row["case"], base] for base in bases if (row["case"], base) in seconds]
    return min(others) / row["median_s"] if others else None


def _cell(values: Iterable[float | None], unit: str, *, least: bool = True) -> str:
    found = [value for value in values if value is not None]
    if not found:
        return ""
    worst = min(found) if least else max(found)
    return f"{geometric_mean(found):.2f}{unit} ({worst:.2f}{unit})"


def written(page: str, folder: Path = RESULTS) -> str:
    """The page with its table made anew. Raises ValueError where the marks are missing."""
    before, mark, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise ValueError(f"docs/kernels.md lacks the marks {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n{section(folder)}\n{END}{after}"


def main() -> int:
    """The command; returns the exit code."""
    path = PAGE
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(written(path.read_text()))
    os.replace(temporary, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
