"""What is committed of a harvest: result files, launch tables, and the rows of docs/kernels.md.

    python -m bench.harvest.merge DIR

Nothing is written but what the rows say: a case that was not timed keeps what an earlier run of the
same GPU found, a launch that was not tuned its heuristic, and a kernel without a row says on its
page that it was not timed. The constants are printed, to be put into `chips.py` by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import kernel_table
from bench.harvest.journal import rows
from bench.kernel_summary import summary
from bench.report import Row, onto, slug, write_results
from tensorlrf_kernels._tables import SHIPPED, write_table
from tensorlrf_kernels.chips import H200
from tensorlrf_kernels.launches import LaunchConfig

NOTE = (
    "Median of CUDA graph replays; every call on operands that the L2 cache does not hold. "
    "A part of the cases and of their ranks, by how much hangs on them."
)
Told = Sequence[dict[str, Any]]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.harvest.merge", description=__doc__)
    parser.add_argument("harvest", type=Path, help="folder of a harvest")
    parser.add_argument("--results", type=Path, default=kernel_table.RESULTS)
    parser.add_argument("--tables", type=Path, default=SHIPPED)
    parser.add_argument("--page", type=Path, default=kernel_table.PAGE)
    given = parser.parse_args(arguments)
    try:
        told = list(rows(given.harvest))
        for path in written(told, given.results, given.tables):
            print(path)
        _page(given.page, given.results)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(in_words(told)))
    return 0


def written(told: Told, results: Path, tables: Path) -> list[Path]:
    """The files that the rows make: times, checks and tests, launches. Raises ValueError for rows
    that do not say of which machine they are."""
    about = machine(told)
    folder = results / slug(about["device"])
    made = []
    timed = [Row(**row["time"]) for row in told if row["kind"] == "time"]
    if timed:
        path = folder / "kernels.json"
        whole, words = timed, {**about, **_not_timed(told)}
        if path.exists():
            whole, words = onto(path, timed, words)
        write_results(folder, "kernels", whole, words, note=NOTE)
        made.append(path)
    if any(row["kind"] in ("check", "test") for row in told):
        made.append(_checks(told, about, folder))
    entries = {
        (row["op"], row["direction"], row["dtype"], row["bucket"]): LaunchConfig.from_json(
            row["launch"]
        )
        for row in told
        if row["kind"] == "tuned"
    }
    if entries:
        chip = replace(H200, name=about["device"])  # the table asks for its name alone
        made.append(write_table(tables, chip, entries, triton=about["triton"]))
    return made


def machine(told: Told) -> dict[str, Any]:
    """Device, versions, commit, and the constants that were measured; raises ValueError where no
    row says it."""
    found = [row["machine"] for row in told if row["kind"] == "machine"]
    if not found:
        raise ValueError(
            "no row says on which machine this was measured: nothing can be told of a device"
        )
    about: dict[str, Any] = dict(found[-1])
    constants = {row["name"]: row["value"] for row in told if row["kind"] == "constant"}
    if constants:
        about["constants"] = constants
    return about


def _not_timed(told: Told) -> dict[str, list[str]]:
    """As `bench.gpu` has them: what failed, and what the time did not reach."""
    found = [row for row in told if row["kind"] == "outcome" and row["phase"] == "time"]
    late = ("not reached", "cut off")
    return {
        "not_reached": [row["case"] for row in found if row["outcome"] in late],
        "failed": [row["case"] for row in found if row["outcome"] not in (*late, "done")],
    }


def _checks(told: Told, about: dict[str, Any], folder: Path) -> Path:
    """checks.json, and a table of it: every property of every op, and the tests."""
    checks = [row for row in told if row["kind"] == "check"]
    tests = [row for row in told if row["kind"] == "test"]
    counts = Counter(row["outcome"] for row in tests)
    ended = [row for row in told if row["kind"] == "outcome" and row["phase"] in ("check", "test")]
    broken = [row for row in ended if row["outcome"] != "done"]
    content = {
        "machine": about,
        "checks": [{k: v for k, v in row.items() if k not in _OURS} for row in checks],
        "tests": dict(counts),
        "failed_tests": [row for row in tests if row["outcome"] == "failed"],
        "not_done": broken,
    }
    lines = [
        "# checks",
        "",
        ", ".join(f"{key} {value}" for key, value in about.items() if key != "constants"),
        "",
        "Frobenius-relative errors against float64; beside them those of library products.",
        "",
        "| op and shape | property | holds | dtype | error | library's error |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in checks:
        errors = (_number(row.get("error")), _number(row.get("chain_error")))
        cells = [row["case"], row["property"], "yes" if row["ok"] else "no", row.get("dtype", "")]
        lines.append("| " + " | ".join((*cells, *errors)) + " |")
    said = ", ".join(f"{n} {what}" for what, n in sorted(counts.items())) or "none was run"
    lines += ["", f"Tests of tests/gpu: {said}.", ""]
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / "checks.json", json.dumps(content, indent=1) + "\n")
    _replace(folder / "checks.md", "\n".join(lines))
    return folder / "checks.json"


_OURS = ("phase", "op", "at", "kind", "say")


def _number(value: Any) -> str:
    return f"{value:.2e}" if isinstance(value, float) else str(value or "")


def _page(path: Path, results: Path) -> None:
    _replace(path, kernel_table.written(path.read_text(), results))


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text)
    os.replace(temporary, path)


def in_words(told: Told) -> list[str]:
    """The goals with what was measured, the constants, and what was tuned."""
    timed = [Row(**row["time"]) for row in told if row["kind"] == "time"]
    lines = summary(timed) if timed else []
    lines += [f"{row['name']} {row['value']:.4g}" for row in told if row["kind"] == "constant"]
    lines += [
        f"{row['op']} {row['bucket']}: {row['heuristic_s'] / row['best_s']:.2f}x over the heuristic"
        for row in told
        if row["kind"] == "tuned"
    ]
    checks = [row for row in told if row["kind"] == "check"]
    lines += [
        f"{'does not hold' if not row['ok'] else 'worse than library products'}: "
        f"{row['case']}, {row['property']}"
        for row in checks
        if not row["ok"] or row.get("worse")
    ]
    lines += [f"{row['kind']}: {row['test']}" for row in told
              if row["kind"] == "test" and row["outcome"] == "failed"]  # fmt: skip
    return lines


if __name__ == "__main__":
    sys.exit(main())
