"""Rules that share ranks out over a model, in one harness: what is lost at one budget.

    python bench/allocation.py                                  all rows that are not there yet
    python bench/allocation.py --rows minilm:fisher:.6 own_cnn  these, measured anew
    python bench/allocation.py --rows smollm2:fisher:.8 --batches 8     with fewer inputs
    python bench/allocation.py --rows smollm2:fisher:.8:original:loss   target and metric of the fit
    python bench/allocation.py --rows minilm --cuts             one process, one set of moments

Each row is a process of its own, and is written as soon as it is measured. A rule's sensitivities
are kept as JSON, for all shares. Rows that say nothing else are fitted with target="independent" in
the metric of the outputs; with --cuts layers are cut along the directions of their outputs in place
of that, which is the same fit without shrinkage, and one process has all rows. "order" rows draw
plans near the optimum of a rule, and tell how the losses that it predicts for them follow those of
the model cut to their ranks, on inputs held out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
# The examples are no package: what follows is found only from here on.
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

import tensorlrf  # noqa: E402
from bench.allocation_ranks import (  # noqa: E402
    ORDERS,
    SHARES,
    Finder,
    Spec,
    replace_text,
    spaced,
    specs_of,
)
from bench.judged import FIGURES, scorer  # noqa: E402
from bench.plan_order import rank_correlation, told_order  # noqa: E402
from bench.report import machine  # noqa: E402
from bench.resident import Resident  # noqa: E402
from bench.subjects import spoken, subject  # noqa: E402
from tensorlrf.compression.plan._matrix_ranks import matrix_ranks  # noqa: E402

HEAD = (
    "Ranks shared out by each rule at one budget, then the same data-aware SVD, with the `target` "
    "and the `metric` that the column of the fit names (outputs where it names none), by "
    "`tensorlrf.apply`; or (cut) layers cut along the directions of their outputs, which is "
    "independent without shrinkage. Over uniform: how much higher the figure is than with uniform "
    "ranks at the same share and target, over examples drawn for both alike. Times are CPU "
    "seconds; ranks: what the rule takes, passes over inputs included (of auto part of fit)."
)

ABOUT = {
    "auto": "fisher or measured, where better than uniform on inputs held out",
    "energy": "energy of the layer's own outputs",
    "effective_rank": "D-Rank",
    "spectrum_shape": "WeLore",
    "block_influence": "MoDeGPT",
    "svd_llm_v2": "SVD-LLM v2",
    "asvd": "ASVD's search, on the losses of `measured`",
}

# ---- one row, in a process of its own ---------------------------------------------------------


class Bench:
    """A model, what calibrates it and how it is judged."""

    def __init__(
        self, model: str, cache: Path, n_batches: int | None, models: Path | None = None
    ) -> None:
        self.models = models
        about = subject(model)
        self.model, self.skip = model, about.skip
        self.dense, self.figure = about.load(), FIGURES[model]
        self.score = scorer(model, self.dense)
        self.batches = spaced(about.calibration(), n_batches)
        self.finder = Finder(model, about, self.dense, self.batches, cache)

    def row(self, spec: Spec, *, cuts: bool) -> dict[str, Any]:
        """With what the model did on each example."""
        row: dict[str, Any] = asdict(spec)
        if spec.rule == "dense":
            return row | self._judged(self.dense)
        row["batches"] = len(self.batches)
        if spec.rule in ORDERS:
            found, _ = self.finder.sensitivity(spec.rule.removeprefix("order-"))
            return row | rank_correlation(
                self.dense, found, self.finder.probe, spec.keep, self.skip
            )
        return row | (self._cut(spec) if cuts else self._fitted(spec))

    def _cut(self, spec: Spec) -> dict[str, Any]:
        plan, seconds = self.finder.plan(spec.rule, spec.keep)
        rows = [row for row in plan.layers if row.eligible]
        after = sum(r.params if r.method is None else r.params_after or 0 for r in rows)
        metrics = self.finder.metrics if spec.metric == "loss" else {}
        return {
            "kept": after / sum(row.params for row in rows),
            "left dense": sum(row.method is None for row in rows),
            "ranks_s": seconds,
        } | self._judged(self.finder.probe.cut(matrix_ranks(plan.layers), metrics))

    def _fitted(self, spec: Spec) -> dict[str, Any]:
        plan, seconds = None, 0.0
        if spec.rule != "auto":
            plan, seconds = self.finder.plan(spec.rule, spec.keep)
        resident, start = Resident(), time.process_time()
        if plan is None:
            small, report = self.finder.compressed(spec)
        else:
            small, report = tensorlrf.apply(
                self.dense, plan, calibration=self.batches, target=spec.target, metric=spec.metric,
                loss=self.figure.loss, readout=self.figure.readout, progress=False,
            )  # fmt: skip
        fitted, peak = time.process_time() - start, resident.peak_mb()
        if self.models is not None:
            self.models.mkdir(parents=True, exist_ok=True)
            path = self.models / f"{spec.model}@{spec.keep:g}.safetensors"
            tensorlrf.save(small, path, overwrite=True)
        return {
            "kept": report.eligible.share,
            "left dense": sum(r.eligible and not r.factored for r in report.layers),
            "ranks_s": seconds,
            "fit_s": fitted,
            "peak_mb": None if peak is None else max(peak, self.finder.peak_mb),
            "chosen": [report.allotment.rule, report.metric or ""],
        } | self._judged(small)

    def _judged(self, model: torch.nn.Module) -> dict[str, Any]:
        scores = self.score(model)
        value, span = self.figure.told(scores)
        also = {name: told(scores) for name, told in self.figure.also.items()}
        kept = scores[:, : self.figure.columns].tolist()
        return {"figure": value, "interval": span, "also": also, "scores": kept}


# ---- the files --------------------------------------------------------------------------------


class Store:
    """Rows by name in a JSON file and a Markdown table, both replaced after each row."""

    def __init__(self, folder: Path, *, fresh: bool) -> None:
        self.folder = folder
        self.path = folder / "allocation.json"
        self.content: dict[str, Any] = {"machine": machine("cpu"), "rows": {}}
        if self.path.exists() and not fresh:
            self.content = json.loads(self.path.read_text())
            if self.content["machine"] != machine("cpu"):
                sys.exit(f"{self.path} was measured on another machine; add --fresh to start over")

    @property
    def rows(self) -> dict[str, Any]:
        rows: dict[str, Any] = self.content["rows"]
        return rows

    def add(self, key: str, row: dict[str, Any]) -> None:
        self.rows[key] = row
        order = [str(spec) for model in SHARES for spec in specs_of(model)]
        self.content["rows"] = {k: self.rows[k] for k in order if k in self.rows}
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_text(self.path, json.dumps(self.content) + "\n")
        replace_text(self.folder / "allocation.md", markdown(self.content))


def markdown(content: Mapping[str, Any]) -> str:
    """A table a model; differences to uniform ranks at the same share."""
    about = ", ".join(f"{key} {value}" for key, value in content["machine"].items())
    rows: Mapping[str, Any] = content["rows"]
    lines = ["# allocation", "", f"{about}.", "", HEAD, ""]
    for model in SHARES:
        own = [row for row in rows.values() if row["model"] == model]
        if own:
            lines += [f"## {model}", "", *_table(model, own), ""]
    return "\n".join(lines)


def _table(model: str, rows: list[dict[str, Any]]) -> list[str]:
    figure = FIGURES[model]
    names = ["kept", "rule", "fit", f"{figure.name} [95%]", "over uniform [95%]"]
    names += [f"{name} [95%]" for name in figure.also]
    names += ["left dense", "ranks", "fit s", "peak MB", "batches"]
    lines = [_line(names), _line(["---"] * len(names))]
    orders = []
    for row in rows:
        if row["rule"] in ORDERS:
            orders.append(told_order(row))
            continue
        said = _said(row["figure"], row["interval"])
        also = ["" if name not in row.get("also", {}) else _said(*row["also"][name])
                for name in figure.also]  # fmt: skip
        if row["rule"] == "dense":
            lines.append(_line(["1", "dense", "", said, "", *also, *[""] * 5]))
            continue
        target, metric = row.get("target", "independent"), row.get("metric", "outputs")
        alike = ("uniform", row["keep"], target, "outputs")
        base = next((r for r in rows if _is(r) == alike), None)
        beside = ""
        if base is not None and base is not row:
            higher, span = figure.beside(np.array(row["scores"]), np.array(base["scores"]))
            beside = f"{higher:+.3g} [{span[0]:+.3g}, {span[1]:+.3g}]"
        rule = row["rule"] + (f" ({ABOUT[row['rule']]})" if row["rule"] in ABOUT else "")
        ranks, fit = (
            "" if row.get(key) is None else f"{row[key]:.0f} s" for key in ("ranks_s", "fit_s")
        )
        peak = f"{row['peak_mb']:.0f}" if row.get("peak_mb") is not None else ""
        how = "cut" if row.get("fit_s") is None else target
        how += "" if metric == "outputs" else f", {metric}"
        chosen = [word for word, asked in zip(row.get("chosen", ()), (row["rule"], metric),
                  strict=False) if asked == "auto"]  # fmt: skip
        how += f" (took {', '.join(chosen)})" if chosen else ""
        lines.append(
            _line([f"{row['kept']:.3f}", rule, how, said, beside, *also, str(row["left dense"]),
                   ranks, fit, peak, str(row["batches"])])
        )  # fmt: skip
    if orders:
        lines += ["", "Predicted and true losses of plans near the optimum: " + " ".join(orders)]
    return lines


def _is(row: Mapping[str, Any]) -> tuple[str, float, str, str]:
    fit = row.get("target", "independent"), row.get("metric", "outputs")
    return row["rule"], row["keep"], *fit


def _said(value: float, span: tuple[float, float]) -> str:
    return f"{value:.4g} {spoken(span)}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--cache", type=Path, default=ROOT / "demo-output/sensitivities")
    parser.add_argument(
        "--rows", nargs="*", default=[], help="MODEL or MODEL:RULE:SHARE[:TARGET[:METRIC]]"
    )
    parser.add_argument("--batches", type=int, help="of calibration inputs, so many of all")
    parser.add_argument("--cuts", action="store_true", help="cut, in one process a model")
    parser.add_argument("--models", type=Path, help="where fitted models are kept, for refine.py")
    parser.add_argument("--fresh", action="store_true", help="measure all rows anew")
    parser.add_argument("--measure", metavar="ROW", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        spec = Spec.of(given.measure)
        bench = Bench(spec.model, given.cache, given.batches, given.models)
        print(json.dumps(bench.row(spec, cuts=False)))
        return
    asked = [
        spec
        for row in given.rows or SHARES
        for spec in (specs_of(row) if row in SHARES else [Spec.of(row)])
    ]
    store = Store(given.results, fresh=given.fresh)
    failed, bench = 0, None
    for spec in asked:
        if str(spec) in store.rows and (not given.rows or given.cuts):
            print(f"{spec}: measured before")
        elif not given.cuts:
            failed += not _row(spec, store, given)
        elif spec.rule != "auto" and spec.target == "independent":  # others are fitted
            if bench is None or bench.model != spec.model:
                bench = Bench(spec.model, given.cache, given.batches)
            _add(spec, store, bench.row(spec, cuts=True))
    sys.exit(failed)


def _row(spec: Spec, store: Store, given: argparse.Namespace) -> bool:
    """Measure one row in a new process; whether it worked."""
    command = [sys.executable, __file__, "--measure", str(spec), "--cache", str(given.cache)]
    command += [] if given.batches is None else ["--batches", str(given.batches)]
    command += [] if given.models is None else ["--models", str(given.models)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if run.returncode:
        print(f"{spec}: failed", flush=True)
        return False
    _add(spec, store, json.loads(run.stdout.splitlines()[-1]))
    return True


def _add(spec: Spec, store: Store, row: dict[str, Any]) -> None:
    store.add(str(spec), row)
    long = ("model", "rule", "keep", "scores", "predicted", "true")
    print(f"{spec}: { {k: v for k, v in row.items() if k not in long} }", flush=True)


if __name__ == "__main__":
    main()
