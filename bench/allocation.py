"""Rules that share ranks out over a model, in one harness: what is lost at one budget.

    python bench/allocation.py                                  all rows that are not there yet
    python bench/allocation.py --rows minilm:fisher:.6 own_cnn  these, measured anew
    python bench/allocation.py --rows smollm2:fisher:.8 --batches 8     with fewer inputs
    python bench/allocation.py --rows minilm --cuts             one process, one set of moments

Each row is a process of its own, and is written as soon as it is measured. A rule's sensitivities
are kept as JSON, for all shares. Rows are fitted with target="independent"; with --cuts layers are
cut along the directions of their outputs in place of that, which is the same fit without shrinkage,
and one process has all rows. "order" rows draw plans near the optimum of a rule, and tell how the
losses that it predicts for them follow those of the model cut to their ranks, on inputs held out.
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
from bench.allocation_ranks import (  # noqa: E402
    ORDERS,
    SHARES,
    Finder,
    Spec,
    replace_text,
    spaced,
    specs_of,
)
from bench.judged import FIGURES, Figure, Scores, scorer  # noqa: E402
from bench.plan_order import matrix_ranks, rank_correlation  # noqa: E402
from bench.report import machine  # noqa: E402
from bench.resident import Resident  # noqa: E402
from bench.subjects import spoken, subject  # noqa: E402

HEAD = (
    "Ranks shared out by each rule at one budget, then the same data-aware SVD of all layers at "
    "once: fitted by `tensorlrf.apply`, or where no time of it is told cut along the directions of "
    "the layers' outputs, the same without shrinkage. Over uniform: how much higher the figure is "
    "than with uniform ranks at the same share, over examples drawn for both alike. Times are CPU "
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

    def __init__(self, model: str, cache: Path, n_batches: int | None) -> None:
        about = subject(model)
        self.model, self.skip = model, about.skip
        self.dense, self.figure = about.load(), FIGURES[model]
        self.score = scorer(model, self.dense)
        self.batches = spaced(about.calibration(), n_batches)
        self.finder = Finder(model, about, self.dense, self.batches, cache)

    def row(self, spec: Spec, *, cuts: bool) -> dict[str, Any]:
        """With what the model did on each example."""
        row: dict[str, Any] = {"model": spec.model, "rule": spec.rule, "keep": spec.keep}
        if spec.rule == "dense":
            return row | _judged(self.figure, self.score(self.dense))
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
        return {
            "kept": after / sum(row.params for row in rows),
            "left dense": sum(row.method is None for row in rows),
            "ranks_s": seconds,
        } | _judged(self.figure, self.score(self.finder.probe.cut(matrix_ranks(plan))))

    def _fitted(self, spec: Spec) -> dict[str, Any]:
        plan, seconds = None, 0.0
        if spec.rule != "auto":
            plan, seconds = self.finder.plan(spec.rule, spec.keep)
        resident, start = Resident(), time.process_time()
        if plan is None:
            small, report = self.finder.compressed(spec.keep)
        else:
            small, report = tensorlrf.apply(
                self.dense, plan, calibration=self.batches, target="independent", progress=False
            )
        fitted, peak = time.process_time() - start, resident.peak_mb()
        return {
            "kept": report.eligible.share,
            "left dense": sum(r.eligible and not r.factored for r in report.layers),
            "ranks_s": seconds,
            "fit_s": fitted,
            "peak_mb": None if peak is None else max(peak, self.finder.peak_mb),
        } | _judged(self.figure, self.score(small))


def _judged(figure: Figure, scores: Scores) -> dict[str, Any]:
    value, span = figure.told(scores)
    return {"figure": value, "interval": span, "scores": scores.tolist()}


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
    lines = [
        f"| kept | rule | {figure.name} [95%] | over uniform [95%] | left dense | ranks | fit | "
        "peak MB | batches |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    orders = []
    for row in rows:
        if row["rule"] in ORDERS:
            orders.append(
                f"{row['keep']:g}, {row['rule'].removeprefix('order-')}: rank correlation "
                f"{row['rank_correlation']:.2f} over {row['plans']} plans, their losses "
                f"{row['least']:.3g} to {row['most']:.3g}."
            )
            continue
        said = f"{row['figure']:.4g} {spoken(row['interval'])}"
        if row["rule"] == "dense":
            lines.append(f"| 1 | dense | {said} | | | | | | |")
            continue
        base = next((r for r in rows if (r["rule"], r["keep"]) == ("uniform", row["keep"])), None)
        beside = ""
        if base is not None and base is not row:
            higher, span = figure.beside(np.array(row["scores"]), np.array(base["scores"]))
            beside = f"{higher:+.3g} [{span[0]:+.3g}, {span[1]:+.3g}]"
        rule = row["rule"] + (f" ({ABOUT[row['rule']]})" if row["rule"] in ABOUT else "")
        ranks, fit = (
            "" if row.get(key) is None else f"{row[key]:.0f} s" for key in ("ranks_s", "fit_s")
        )
        peak = f"{row['peak_mb']:.0f}" if row.get("peak_mb") is not None else ""
        lines.append(
            f"| {row['kept']:.3f} | {rule} | {said} | {beside} | {row['left dense']} | "
            f"{ranks} | {fit} | {peak} | {row['batches']} |"
        )
    if orders:
        lines += ["", "Predicted and true losses of plans near the optimum: " + " ".join(orders)]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--cache", type=Path, default=ROOT / "demo-output/sensitivities")
    parser.add_argument("--rows", nargs="*", default=[], help="MODEL or MODEL:RULE:SHARE")
    parser.add_argument("--batches", type=int, help="of calibration inputs, so many of all")
    parser.add_argument("--cuts", action="store_true", help="cut, in one process a model")
    parser.add_argument("--fresh", action="store_true", help="measure all rows anew")
    parser.add_argument("--measure", metavar="ROW", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        spec = Spec.of(given.measure)
        print(json.dumps(Bench(spec.model, given.cache, given.batches).row(spec, cuts=False)))
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
            failed += not _row(spec, store, given.cache, given.batches)
        elif spec.rule != "auto":  # that fits as well
            if bench is None or bench.model != spec.model:
                bench = Bench(spec.model, given.cache, given.batches)
            _add(spec, store, bench.row(spec, cuts=True))
    sys.exit(failed)


def _row(spec: Spec, store: Store, cache: Path, n_batches: int | None) -> bool:
    """Measure one row in a new process; whether it worked."""
    command = [sys.executable, __file__, "--measure", str(spec), "--cache", str(cache)]
    command += [] if n_batches is None else ["--batches", str(n_batches)]
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
