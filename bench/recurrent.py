"""LSTMs on factors beside torch's: the products with the input, and the two ways of the recurrence.

    python bench/recurrent.py

Ratios of median times, torch's own over ours, all in turn in one process: the products with the
input of all steps alone; the whole module with the recurrence by torch's kernel, its dense matrix
made in each call or kept (frozen); and step by step on the factors (loop). At half, a quarter and
an eighth of the weights, random ones: times do not depend on values.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import tensorlrf  # noqa: E402
from bench.report import machine  # noqa: E402
from tensorlrf.ops import time_calls  # noqa: E402

CASES = ((256, 16, 63), (512, 1, 63), (512, 16, 63), (1024, 1, 32), (1024, 16, 32), (2048, 1, 16))
"""Hidden units (and inputs), batch, steps."""
SHARES = (0.5, 0.25, 0.125)
WAYS = ("kernel", "frozen", "loop")
NOTE = (
    "nn.LSTM of as many inputs as hidden units over tensorlrf's, one layer and direction, float32, "
    "inference; medians in turn, one process, the threads named above. Chosen: what "
    "recurrence='auto' takes before tune."
)


def layers_of(hidden: int, share: float) -> dict[str, Any]:
    """The modules that take part."""
    dense = nn.LSTM(hidden, hidden).eval()
    small = tensorlrf.nn.factorize(dense, "svd", share, solver="randomized").eval()
    made: dict[str, Any] = {"dense": dense}
    for way in WAYS:
        made[way] = copy.deepcopy(small)
        made[way].recurrence = "loop" if way == "loop" else "kernel"
    made["frozen"].recurrent_l0.freeze()
    made["auto"] = small
    return made


def measure(hidden: int, batch: int, steps: int, share: float, seconds: float) -> dict[str, Any]:
    made = layers_of(hidden, share)
    x = torch.randn(steps, batch, hidden)
    plain = nn.Linear(hidden, 4 * hidden)
    small = made["auto"]
    with torch.inference_mode():
        products = time_calls(
            {"dense": _run(plain, x), "small": _run(small.input_l0, x)}, seconds=seconds
        )
        whole = time_calls({k: _run(made[k], x) for k in ("dense", *WAYS)}, seconds=2 * seconds)
    return {
        "hidden": hidden, "batch": batch, "steps": steps, "share": share,
        "rank": small.recurrent_l0.factors.rank,
        "input": products.median("dense") / products.median("small"),
        **{way: whole.median("dense") / whole.median(way) for way in WAYS},
        "dense_ms": 1e3 * whole.median("dense"),
        "chosen": "loop" if small._loops([small.recurrent_l0], x, None) else "kernel",
    }  # fmt: skip


def _run(module: nn.Module, x: Tensor) -> Callable[[], object]:
    def run() -> object:
        return module(x)

    return run


def markdown(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    lines = ["# recurrent", "", ", ".join(f"{k} {v}" for k, v in about.items()), "", NOTE, ""]
    head = ["hidden", "batch", "steps", "share", "rank", "torch's, ms", "input product"]
    head += ["kernel", "kernel, frozen", "loop", "chosen"]
    lines += [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for row in rows:
        cells = [str(row[k]) for k in ("hidden", "batch", "steps", "share", "rank")]
        cells += [f"{row['dense_ms']:.2f}", f"{row['input']:.2f}x"]
        cells += [f"{row[way]:.2f}x" for way in WAYS]
        lines.append(f"| {' | '.join([*cells, row['chosen']])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    given = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    for case in CASES:
        for share in SHARES:
            rows.append(measure(*case, share, given.seconds))
            print(rows[-1], flush=True)
    about = machine("cpu")
    given.results.mkdir(parents=True, exist_ok=True)
    path = given.results / "recurrent.json"
    path.write_text(json.dumps({"machine": about, "note": NOTE, "rows": rows}, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(rows, about))


if __name__ == "__main__":
    main()
