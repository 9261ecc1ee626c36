"""SmolLM2 at one share of all its parameters, its embedding factored with the rest or left.

    python bench/whole.py                  all ways at .8 of all parameters
    python bench/whole.py --share .9       or another share
    python bench/whole.py --batches 8      with fewer inputs
    python bench/whole.py --results DIR    elsewhere

All are `tensorlrf.compress(model, keep_total=share)` with its defaults, calibrated on 32 windows
of background documents and docstrings; all but one have include=["embeddings", "heads"], and some a
share of the table in bands of words, between which the error on batches held out chooses.
Perplexities are those of `bench/allocation.py`, their difference over blocks of tokens that are
drawn for both alike. Each row is written as soon as it is measured, beside those that are there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

import numpy as np  # noqa: E402
import torch  # noqa: E402

import tensorlrf  # noqa: E402
from bench.allocation_ranks import replace_text, spaced  # noqa: E402
from bench.judged import FIGURES, scorer  # noqa: E402
from bench.report import machine  # noqa: E402

WAYS: dict[str, float | None] = {
    "left": None, "factored": None, "bands .9": 0.9, "bands .75": 0.75,
}  # fmt: skip
"""What becomes of the embedding -> the share of it that bands of words keep, by GroupReduce."""

TABLE = "model.embed_tokens"

FIGURE = FIGURES["smollm2"]

HEAD = (
    "SmolLM2-135M at one share of all its parameters, its embedding (28.3 million of 134.5, tied "
    "to the head) left as it is, factored with the rest, or in bands of words. Held out: relative "
    "error of the outputs on calibration batches held out. Higher: by how much the perplexity is "
    "above that of the model whose embedding is left."
)


def measured(way: str, share: float, n_batches: int) -> dict[str, Any]:
    """One row."""
    import smollm2

    dense, tokenizer = smollm2.load_smollm2(), smollm2.load_tokenizer()
    batches = spaced(smollm2.mixed_batches(tokenizer), n_batches)
    start = time.process_time()
    bands, method = WAYS[way], {}
    if bands is not None:
        method = {"method": {TABLE: tensorlrf.GroupReduce(rank=bands), "*": "svd"}}
    small, report = tensorlrf.compress(
        dense, keep_total=share, include=[] if way == "left" else ["embeddings", "heads"],
        calibration=batches, progress=False, **method,
    )  # fmt: skip
    seconds = time.process_time() - start
    table = report.layer(TABLE)
    scores = scorer("smollm2", dense)(small)[:, : FIGURE.columns]
    return {
        "way": way,
        "share": share,
        "batches": len(batches),
        "whole": report.model.share,
        "eligible": report.eligible.share,
        "table": table.params_after / 28_311_552,
        "output_error": table.output_error,
        "held_out": report.model_error,
        "rule": [report.allotment.rule, report.metric],
        "seconds": seconds,
        "scores": np.asarray(scores).round(6).tolist(),
    }


def told(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """The table."""
    names = (
        "share", "embedding", "kept of it", "whole", "of the eligible", "held out",
        FIGURE.name, *FIGURE.also, "higher", "rule, metric", "CPU s",
    )  # fmt: skip
    lines = ["# whole", "", HEAD, "", ", ".join(f"{k}: {v}" for k, v in about.items()), ""]
    lines += [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    left = {row["share"]: np.asarray(row["scores"]) for row in rows if row["way"] == "left"}
    for row in rows:
        scores, other = np.asarray(row["scores"]), left.get(row["share"])
        figures = [FIGURE.told(scores), *(also(scores) for also in FIGURE.also.values())]
        cells = [f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, (low, high) in figures]
        beside = "-"
        if other is not None and row["way"] != "left":
            value, (low, high) = FIGURE.beside(scores, other)
            beside = f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"
        shares = [f"{row[key]:.1%}" for key in ("table", "whole", "eligible")]
        rule, held = ", ".join(map(str, row["rule"])), row.get("held_out")
        shares.append("-" if held is None else f"{held:.4f}")
        cells = [f"{row['share']:g}", row["way"], *shares, *cells, beside, rule]
        lines.append(f"| {' | '.join(cells)} | {row['seconds']:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--share", type=float, default=0.8)
    parser.add_argument("--batches", type=int, default=32)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results" / "cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    path, about = given.results / "whole.json", machine("cpu")
    given.results.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    for way in given.ways:
        rows = [row for row in rows if (row["way"], row["share"]) != (way, given.share)]
        rows.append(measured(way, given.share, given.batches))
        replace_text(path, json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")
        replace_text(path.with_suffix(".md"), told(rows, about))
        print(told(rows, about).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
