"""Whole modules made smaller, beside factors of single layers at equal parameters.

    python bench/modular.py                       all rows that are not there yet
    python bench/modular.py --rows minilm:.6      this one, measured anew

Each row is a process of its own, and is written as soon as it is measured: `method="modular"` with
all else as it is by default, the loss and the readout those of the model's figure. The row of the
default method is the one of `allocation.json`, on the same machine and the same inputs. Times are
medians of a forward pass on the example, the given model and the smaller one in turn, one thread.
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
from bench.resident import Resident  # noqa: E402
from bench.subjects import spoken, subject  # noqa: E402

ROWS = ("minilm:0.6", "minilm:0.4", "smollm2:0.8")

HEAD = (
    'Whole modules made smaller by `method="modular"`, all else by default: fewer channels of '
    "perceptrons, smaller heads of attentions. Default: factors of single layers at the same share "
    'of the same weights, `method="svd"` with `allocation="auto"` and `metric="auto"`, as in '
    "`allocation.md`. Over default: how much higher the figure is, over examples drawn for both "
    "alike. Latency: dense over smaller, a forward pass of the whole model, in turn. Times are CPU "
    "seconds."
)


def measured(name: str, keep: float, n_batches: int | None) -> dict[str, Any]:
    """One row, with what the model did on each example."""
    about, figure = subject(name), FIGURES[name]
    dense = about.load()
    batches = spaced(about.calibration(), n_batches)
    resident, start = Resident(), time.process_time()
    small, report = tensorlrf.compress(
        dense, method="modular", keep_params=keep, calibration=batches, skip=about.skip,
        loss=figure.loss, readout=figure.readout, progress=False,
    )  # fmt: skip
    fitted, peak = time.process_time() - start, resident.peak_mb()
    scores = scorer(name, dense)(small)
    value, span = figure.told(scores)
    from tensorlrf.compression._latency import measure_model

    times = measure_model(dense, small, [about.example()])
    return {
        "model": name,
        "keep": keep,
        "kept": report.eligible.share,
        "whole": report.model.share,
        "chosen": [report.allotment.rule, report.metric],
        "left": sum(row.eligible and not row.factored for row in report.layers),
        "figure": value,
        "interval": span,
        "also": {key: told(scores) for key, told in figure.also.items()},
        "scores": scores[:, : figure.columns].tolist(),
        "latency": times,
        "fit_s": fitted,
        "peak_mb": peak,
        "batches": len(batches),
    }


# ---- the files --------------------------------------------------------------------------------


def markdown(content: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    """A table a model, with the default beside."""
    about = ", ".join(f"{key} {value}" for key, value in content["machine"].items())
    lines = ["# modular", "", f"{about}.", "", HEAD, ""]
    for model in dict.fromkeys(row["model"] for row in content["rows"].values()):
        own = [row for row in content["rows"].values() if row["model"] == model]
        lines += [f"## {model}", "", *_table(model, own, others), ""]
    return "\n".join(lines)


def _table(model: str, rows: list[dict[str, Any]], others: Mapping[str, Any]) -> list[str]:
    figure = FIGURES[model]
    names = ["kept", "whole model", "method", f"{figure.name} [95%]", "over default [95%]"]
    names += [f"{name} [95%]" for name in figure.also]
    names += ["latency", "fit s", "peak MB", "batches"]
    lines = [_line(names), _line(["---"] * len(names))]
    for row in rows:
        base = others.get(f"{model}:auto:{row['keep']:g}:original:auto")
        beside = ""
        if base is not None:
            lines.append(_of(base, "default", figure, "", ""))
            higher, span = figure.beside(np.array(row["scores"]), np.array(base["scores"]))
            beside = f"{higher:+.3g} [{span[0]:+.3g}, {span[1]:+.3g}]"
        dense, small = row["latency"]
        said = f"{dense * 1e3:.3g} over {small * 1e3:.3g} ms, {dense / small:.2f}x"
        lines.append(_of(row, f"modular (took {', '.join(row['chosen'])})", figure, beside, said))
    return lines


def _of(row: Mapping[str, Any], method: str, figure: Any, beside: str, latency: str) -> str:
    also = [_said(*row["also"][name]) for name in figure.also]
    whole = f"{row['whole']:.3f}" if "whole" in row else ""
    peak = f"{row['peak_mb']:.0f}" if row.get("peak_mb") is not None else ""
    said = _said(row["figure"], row["interval"])
    cells = [f"{row['kept']:.3f}", whole, method, said, beside, *also, latency,
             f"{row['fit_s']:.0f}", peak, str(row["batches"])]  # fmt: skip
    return _line(cells)


def _said(value: float, span: tuple[float, float]) -> str:
    return f"{value:.4g} {spoken(span)}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--rows", nargs="*", default=[], help="MODEL:SHARE, measured anew")
    parser.add_argument("--batches", type=int, help="of calibration inputs, so many of all")
    parser.add_argument("--measure", metavar="ROW", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        name, _, keep = given.measure.partition(":")
        print(json.dumps(measured(name, float(keep), given.batches)))
        return
    path = given.results / "modular.json"
    content: dict[str, Any] = {"machine": machine("cpu"), "rows": {}}
    if path.exists():
        content = json.loads(path.read_text())
        if content["machine"] != machine("cpu"):
            sys.exit(f"{path} was measured on another machine; remove it to start over")
    failed = 0
    for asked in given.rows or ROWS:
        name, _, keep = asked.partition(":")
        key = f"{name}:{float(keep):g}"
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
        beside = given.results / "allocation.json"
        others = json.loads(beside.read_text())["rows"] if beside.exists() else {}
        replace_text(path.with_suffix(".md"), markdown(content, others))
        print(f"{key}: { {k: v for k, v in row.items() if k != 'scores'} }", flush=True)
    sys.exit(failed)


def _order(item: tuple[str, Any]) -> int:
    return ROWS.index(item[0]) if item[0] in ROWS else len(ROWS)


if __name__ == "__main__":
    main()
