"""Whole models compressed, in one harness: what is lost, what is won, time, memory, round trip.

    python bench/models.py --results bench/results/cpu            all rows that are not there yet
    python bench/models.py --rows minilm:prefix:.6 smollm2:dense:1   these rows, measured anew
    python bench/models.py --rows minilm                             all rows of a model anew

Each row is a process of its own, so that none sees another's memory. The files are written anew
after each row, and a run that is started again goes on where the last one stopped.

"compress s" is the time of `tensorlrf.compress` without loading; "peak MB" the most resident memory
in it above what is resident before (the dense model and the calibration inputs), the compressed
model included; latencies are medians of dense and compressed in turn, after `tune`; "round trip"
compares, in a new process, the outputs of the saved model loaded into the bare architecture.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

from bench.one_model import check, measure, parse  # noqa: E402
from bench.report import Row, machine, write_results  # noqa: E402
from bench.subjects import SUBJECTS, Subject, subject  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--rows", nargs="*", default=[], help="MODEL or MODEL:VARIANT:SHARE")
    parser.add_argument("--fresh", action="store_true", help="measure all rows anew")
    parser.add_argument("--measure", metavar="ROW", help=argparse.SUPPRESS)
    parser.add_argument("--check", metavar="MODEL", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure)))
    elif given.check:
        print(json.dumps(check(given.check, given.folder)))
    else:
        sys.exit(run(given.results, given.rows, fresh=given.fresh))


def run(results: Path, asked: list[str], *, fresh: bool) -> int:
    """Measure what is asked for; the number of rows that failed."""
    failed = 0
    for name in SUBJECTS:
        chosen = [row for row in asked if row.split(":")[0] == name]
        if asked and not chosen:
            continue
        about = subject(name)
        specs = [
            spec for row in chosen for spec in ([row] if ":" in row else specs_of(name, about))
        ]
        store = Store(results, name, about, fresh=fresh)
        for spec in specs or specs_of(name, about):
            if not asked and case_of(spec) in store.cases:
                print(f"{spec}: measured before")
                continue
            failed += not _row(spec, store)
    unknown = [row for row in asked if row.split(":")[0] not in SUBJECTS]
    if unknown:
        raise SystemExit(f"--rows {unknown[0]}: the model must be one of {', '.join(SUBJECTS)}")
    return failed


def specs_of(name: str, about: Subject) -> list[str]:
    """All rows of a model, the dense one first."""
    return [f"{name}:dense:1", *(f"{name}:{variant}:{keep:g}" for variant, keep in about.rows)]


def case_of(spec: str) -> str:
    """What the table calls a row."""
    _, variant, keep = parse(spec)
    return "dense" if variant == "dense" else f"{keep:g} {variant}"


def rows_of(spec: str, measured: dict[str, Any]) -> list[Row]:
    """The dense model and ours beneath each other, as they were timed in turn."""
    rows = []
    last = list(measured["samples"])[-1]
    for variant, samples in measured["samples"].items():
        info = measured["info"] if variant == last else {}
        rows.append(
            Row(
                case_of(spec),
                variant,
                statistics.median(samples),
                min(samples),
                len(samples),
                info,
            )
        )
    return rows


class Store:
    """The rows of one model in a JSON file and a Markdown table, written anew after each."""

    def __init__(self, folder: Path, stem: str, about: Subject, *, fresh: bool) -> None:
        self.folder, self.stem, self.note = folder, stem, about.note
        self.order = [case_of(spec) for spec in specs_of(stem, about)]
        self.cases: dict[str, list[Row]] = {}
        path = folder / f"{stem}.json"
        if path.exists() and not fresh:
            content = json.loads(path.read_text())
            if content["machine"] != machine("cpu"):
                sys.exit(f"{path} was measured on another machine; add --fresh to start over")
            for row in content["rows"]:
                self.cases.setdefault(row["case"], []).append(Row(**row))

    def add(self, rows: list[Row]) -> None:
        self.cases[rows[0].case] = rows
        known = [case for case in self.order if case in self.cases]
        others = [case for case in self.cases if case not in known]
        ordered = [row for case in [*known, *others] for row in self.cases[case]]
        write_results(self.folder, self.stem, ordered, machine("cpu"), self.note)


def _row(spec: str, store: Store) -> bool:
    """Measure one row in a new process; whether it worked."""
    run = subprocess.run(
        [sys.executable, __file__, "--measure", spec],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if run.returncode:
        print(f"{spec}: failed")
        return False
    rows = rows_of(spec, json.loads(run.stdout.splitlines()[-1]))
    store.add(rows)
    shown = ", ".join(f"{key} {_short(value)}" for key, value in rows[-1].info.items())
    print(f"{spec}: {rows[0].median_s / rows[-1].median_s:.2f}x, {shown}", flush=True)
    return True


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
