"""Rows MODEL:SHARE[:WORD] of a table, each measured by a process of its own, written at once."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.allocation_ranks import replace_text
from bench.report import machine
from bench.subjects import spoken

RESULTS = Path(__file__).with_name("results") / "cpu"


def asked(about: str | None, row: str) -> argparse.Namespace:
    """The command line: `results`, `rows`, `batches`, and `measure` in the process of one row."""
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--rows", nargs="*", default=[], help=f"{row}, measured anew")
    parser.add_argument("--batches", type=int, help="of calibration inputs, so many of all")
    parser.add_argument("--measure", metavar="ROW", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure_rows(
    script: str,
    given: argparse.Namespace,
    rows: Sequence[str],
    measured: Callable[..., dict[str, Any]],
    markdown: Callable[[Mapping[str, Any]], str],
) -> None:
    """`measured(model, share, *words, n_batches)` of what is asked for, else of the `rows` that are
    not there yet; after each the JSON of all and its `markdown`. Ends the process."""
    if given.measure:
        model, keep, *words = given.measure.split(":")
        print(json.dumps(measured(model, float(keep), *words, given.batches)))
        return
    path = (given.results / Path(script).name).with_suffix(".json")
    content: dict[str, Any] = {"machine": machine("cpu"), "rows": {}}
    if path.exists():
        content = json.loads(path.read_text())
        if content["machine"] != machine("cpu"):
            sys.exit(f"{path} was measured on another machine; remove it to start over")
    failed = 0
    for key in map(_key, given.rows or rows):
        if key in content["rows"] and not given.rows:
            print(f"{key}: measured before")
            continue
        command = [sys.executable, script, "--measure", key]
        command += [] if given.batches is None else ["--batches", str(given.batches)]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if run.returncode:
            print(f"{key}: failed", flush=True)
            failed += 1
            continue
        row = json.loads(run.stdout.splitlines()[-1])
        content["rows"][key] = row
        known = [name for name in rows if name in content["rows"]]
        content["rows"] = {name: content["rows"][name] for name in known} | content["rows"]
        given.results.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(content) + "\n")
        replace_text(path.with_suffix(".md"), markdown(content))
        print(f"{key}: { {k: v for k, v in row.items() if k != 'scores'} }", flush=True)
    sys.exit(failed)


def _key(asked: str) -> str:
    """One spelling of a row: minilm:0.6 of minilm:.6."""
    model, keep, *words = asked.split(":")
    return ":".join([model, f"{float(keep):g}", *words])


# ---- what tables of rows say ------------------------------------------------------------------


def tables(
    title: str,
    head: str,
    content: Mapping[str, Any],
    table: Callable[[str, list[dict[str, Any]]], list[str]],
) -> str:
    """Markdown: the machine, the `head`, and a `table(model, rows)` for each model."""
    about = ", ".join(f"{key} {value}" for key, value in content["machine"].items())
    lines = [f"# {title}", "", f"{about}.", "", head, ""]
    for model in dict.fromkeys(row["model"] for row in content["rows"].values()):
        own = [row for row in content["rows"].values() if row["model"] == model]
        lines += [f"## {model}", "", *table(model, own), ""]
    return "\n".join(lines)


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def said(value: float, span: tuple[float, float]) -> str:
    """A figure and its interval."""
    return f"{value:.4g} {spoken(span)}"


def times(latency: tuple[float, float]) -> str:
    """Seconds of the dense model and of the smaller one."""
    dense, small = latency
    return f"{dense * 1e3:.3g} over {small * 1e3:.3g} ms, {dense / small:.2f}x"


def higher(figure: Any, row: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """By how much the figure of `row` is over that of `base`, examples in pairs."""
    by, span = figure.beside(np.array(row["scores"]), np.array(base["scores"]))
    return f"{by:+.3g} [{span[0]:+.3g}, {span[1]:+.3g}]"
