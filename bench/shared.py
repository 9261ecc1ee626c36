"""Right factors that layers have in common, beside factors of their own at equal parameters.

    python bench/shared.py                              all rows that are not there yet
    python bench/shared.py --rows minilm:.6:inputs      this one, measured anew

Each row is a process of its own, and is written as soon as it is measured: `shared=` of the third
word, all else as it is by default, the loss and the readout those of the model's figure; "apart" is
the default itself. Times are medians of a forward pass on the example, the given model and the
smaller one in turn, one thread.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
# The examples are no package: what follows is found only from here on.
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

import tensorlrf  # noqa: E402
from bench.allocation_ranks import replace_text, spaced  # noqa: E402
from bench.judged import FIGURES, scorer  # noqa: E402
from bench.report import machine  # noqa: E402
from bench.subjects import spoken, subject  # noqa: E402

APART = "apart"

ROWS = tuple(f"minilm:{keep}:{word}" for keep in (0.6, 0.4) for word in (APART, "inputs", "layers"))

HEAD = (
    "One right factor for several layers, by `shared=`, where that has clearly less error on "
    "inputs held out than factors of their own: query, key and value (inputs), neighbours in depth "
    "(layers). Apart: the default at the same share of the same weights. Over apart: how much "
    "higher the figure is, over examples drawn for both alike. Bases: groups kept of those tried, "
    "and the layers in them. Latency: dense over smaller, a forward pass of the whole model, in "
    "turn. Times are CPU seconds."
)


def measured(name: str, keep: float, word: str, n_batches: int | None) -> dict[str, Any]:
    """One row, with what the model did on each example."""
    about, figure = subject(name), FIGURES[name]
    dense = about.load()
    batches = spaced(about.calibration(), n_batches)
    start = time.process_time()
    small, report = tensorlrf.compress(
        dense, keep_params=keep, calibration=batches, skip=about.skip, loss=figure.loss,
        readout=figure.readout, shared=None if word == APART else word, progress=False,
    )  # fmt: skip
    fitted = time.process_time() - start
    scores = scorer(name, dense)(small)
    value, span = figure.told(scores)
    from tensorlrf.compression._latency import measure_model

    kept = [basis for basis in report.bases if basis.kept]
    return {
        "model": name,
        "keep": keep,
        "shared": word,
        "kept": report.eligible.share,
        "whole": report.model.share,
        "chosen": [report.allotment.rule, report.metric or ""],
        "tried": len(report.bases),
        "bases": len(kept),
        "layers": sum(len(basis.layers) for basis in kept),
        "figure": value,
        "interval": span,
        "also": {key: told(scores) for key, told in figure.also.items()},
        "scores": scores[:, : figure.columns].tolist(),
        "latency": measure_model(dense, small, [about.example()]),
        "fit_s": fitted,
        "batches": len(batches),
    }


# ---- the files --------------------------------------------------------------------------------


def markdown(content: Mapping[str, Any]) -> str:
    """A table a model."""
    about = ", ".join(f"{key} {value}" for key, value in content["machine"].items())
    lines = ["# shared", "", f"{about}.", "", HEAD, ""]
    for model in dict.fromkeys(row["model"] for row in content["rows"].values()):
        own = [row for row in content["rows"].values() if row["model"] == model]
        lines += [f"## {model}", "", *_table(model, own), ""]
    return "\n".join(lines)


def _table(model: str, rows: list[dict[str, Any]]) -> list[str]:
    figure = FIGURES[model]
    names = ["kept", "shared", f"{figure.name} [95%]", "over apart [95%]"]
    names += [f"{name} [95%]" for name in figure.also]
    names += ["bases", "latency", "fit s", "batches"]
    lines = [_line(names), _line(["---"] * len(names))]
    apart = {row["keep"]: row for row in rows if row["shared"] == APART}
    for row in rows:
        beside, base = "", apart.get(row["keep"])
        if base is not None and base is not row:
            higher, span = figure.beside(np.array(row["scores"]), np.array(base["scores"]))
            beside = f"{higher:+.3g} [{span[0]:+.3g}, {span[1]:+.3g}]"
        dense, small = row["latency"]
        bases = f"{row['bases']} of {row['tried']}, {row['layers']} layers" if row["tried"] else ""
        lines.append(
            _line(
                [f"{row['kept']:.3f}", row["shared"], _said(row["figure"], row["interval"]), beside,
                 *(_said(*row["also"][name]) for name in figure.also), bases,
                 f"{dense * 1e3:.3g} over {small * 1e3:.3g} ms, {dense / small:.2f}x",
                 f"{row['fit_s']:.0f}", str(row["batches"])]
            )
        )  # fmt: skip
    return lines


def _said(value: float, span: tuple[float, float]) -> str:
    return f"{value:.4g} {spoken(span)}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--rows", nargs="*", default=[], help="MODEL:SHARE:WORD, measured anew")
    parser.add_argument("--batches", type=int, help="of calibration inputs, so many of all")
    parser.add_argument("--measure", metavar="ROW", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        name, keep, word = given.measure.split(":")
        print(json.dumps(measured(name, float(keep), word, given.batches)))
        return
    path = given.results / "shared.json"
    content: dict[str, Any] = {"machine": machine("cpu"), "rows": {}}
    if path.exists():
        content = json.loads(path.read_text())
        if content["machine"] != machine("cpu"):
            sys.exit(f"{path} was measured on another machine; remove it to start over")
    failed = 0
    for asked in given.rows or ROWS:
        name, keep, word = asked.split(":")
        key = f"{name}:{float(keep):g}:{word}"
        if key in content["rows"] and not given.rows:
            print(f"{key}: measured before")
            continue
        command = [sys.executable, __file__, "--measure", key]
        command += [] if given.batches is None else ["--batches", str(given.batches)]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if run.returncode:
            print(f"{key}: failed", flush=True)
            failed += 1
            continue
        row = json.loads(run.stdout.splitlines()[-1])
        content["rows"][key] = row
        content["rows"] = dict(sorted(content["rows"].items(), key=_order))
        given.results.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(content) + "\n")
        replace_text(path.with_suffix(".md"), markdown(content))
        print(f"{key}: { {k: v for k, v in row.items() if k != 'scores'} }", flush=True)
    sys.exit(failed)


def _order(item: tuple[str, Any]) -> int:
    return ROWS.index(item[0]) if item[0] in ROWS else len(ROWS)


if __name__ == "__main__":
    main()
