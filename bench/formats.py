"""Structured formats on layers of real models at equal parameters, plain and data-aware.

    python bench/formats.py --results bench/results/cpu       all rows that are not there yet
    python bench/formats.py --rows minilm craft:slice1.10     those that begin so, measured anew
    python bench/formats.py --list                            names of all rows

A row is MODEL:LAYER:FORMAT:SHARE. formats.json and formats.md are written anew after each row, and
a run that is started again goes on where the last one stopped (--fresh starts over). At the end the
rows are named in which the data-aware fit is not better than the plain one on held-out inputs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

from bench.format_layers import SOURCES, formats_of  # noqa: E402
from bench.format_rows import FormatRow, key, measure  # noqa: E402
from bench.format_table import goal, markdown  # noqa: E402
from bench.report import machine  # noqa: E402

SHARES = (0.25, 0.5)
"""Of the parameters of each weight."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--rows", nargs="*", default=[], help="MODEL[:LAYER[:FORMAT[:SHARE]]]")
    parser.add_argument("--fresh", action="store_true", help="measure all rows anew")
    parser.add_argument("--list", action="store_true", help="print the names of all rows")
    given = parser.parse_args()
    if given.list:
        print("\n".join(plan()))
        return
    sys.exit(run(given.results, given.rows, fresh=given.fresh))


def plan() -> list[str]:
    """The names of all rows, in the order of the table."""
    return [
        key(model, layer, format, share)
        for model, layers in SHAPES.items()
        for layer, shape in layers.items()
        for share in SHARES
        for format in formats_of(shape)
    ]


# Known ahead of the weights, so that a run that has nothing to do loads no model.
_MINILM = {"query": (384, 384), "intermediate": (1536, 384), "output": (384, 1536)}
_SMOLLM2 = {"q": (576, 576), "gate": (1536, 576), "down": (576, 1536)}
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "craft": {
        "slice1.10": (128, 128, 3, 3),
        "slice2.17": (256, 256, 3, 3),
        "upconv2.3": (128, 256, 3, 3),
        "upconv2.0": (256, 768, 1, 1),
    },
    "minilm": {f"{k}.{part}": shape for k in (0, 5) for part, shape in _MINILM.items()},
    "smollm2": {f"{k}.{part}": shape for k in (0, 15) for part, shape in _SMOLLM2.items()},
}


def chosen(names: Sequence[str], asked: Sequence[str]) -> list[str]:
    """The rows that begin with one of those asked for, part by part.

    Raises:
        SystemExit: one of them is the beginning of no row.
    """
    found: list[str] = []
    for prefix in asked:
        rows = [name for name in names if f"{name}:".startswith(f"{prefix}:")]
        if not rows:
            raise SystemExit(f"--rows {prefix}: no such row; --list prints their names")
        found += [name for name in rows if name not in found]
    return found


def run(results: Path, asked: Sequence[str], *, fresh: bool) -> int:
    """Measure what is asked for, or what is missing; the number of rows that failed."""
    names = plan()
    store = Store(results, names, fresh=fresh)
    todo = chosen(names, asked) if asked else [name for name in names if name not in store.rows]
    print(f"{len(todo)} rows to measure, {len(store.rows)} measured before", flush=True)
    failed = 0
    for model in SOURCES:
        own = [name for name in todo if name.split(":")[0] == model]
        if own:
            failed += _run_model(model, own, store)
    store.write()
    print(goal(store.ordered()))
    return failed


def _run_model(model: str, names: Sequence[str], store: Store) -> int:
    source = SOURCES[model]()
    layers = source.made(list(dict.fromkeys(name.split(":")[1] for name in names)))
    store.notes[model] = source.note
    failed = 0
    for name in names:
        _, layer, format, share = name.split(":")
        try:
            row = measure(model, layer, layers[layer], format, float(share))
        except Exception as error:  # the other rows do not depend on it
            print(f"{name}: failed, {type(error).__name__}: {error}", flush=True)
            failed += 1
            continue
        store.add(row)
        print(
            f"{name}: kept {row.kept:.3f}, outputs {row.plain:.4f} -> {row.aware:.4f}, "
            f"{row.speedup:.2f}x by {row.path}, {row.plain_s:.1f} + {row.aware_s:.1f} s"
            + ("" if row.holds else "  (data-aware is no better)"),
            flush=True,
        )
    return failed


class Store:
    """Rows in formats.json and formats.md, replaced in one step after each."""

    def __init__(self, folder: Path, names: Iterable[str], *, fresh: bool) -> None:
        self.folder, self.names = folder, list(names)
        self.rows: dict[str, FormatRow] = {}
        self.notes: dict[str, str] = {}
        path = folder / "formats.json"
        if path.exists() and not fresh:
            content = json.loads(path.read_text())
            if content["machine"] != machine("cpu"):
                sys.exit(f"{path} was measured on another machine; add --fresh to start over")
            self.notes = dict(content["notes"])
            for values in content["rows"]:
                row = FormatRow.from_json(values)
                self.rows[row.key] = row

    def ordered(self) -> list[FormatRow]:
        known = [name for name in self.names if name in self.rows]
        return [self.rows[name] for name in [*known, *(n for n in self.rows if n not in known)]]

    def add(self, row: FormatRow) -> None:
        self.rows[row.key] = row
        self.write()

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        rows, about = self.ordered(), machine("cpu")
        content: dict[str, Any] = {"machine": about, "notes": self.notes}
        content["rows"] = [row.to_json() for row in rows]
        _replace(self.folder / "formats.json", json.dumps(content, indent=1) + "\n")
        text = markdown(rows, about, list(self.notes.values()))
        _replace(self.folder / "formats.md", text)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text)
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
