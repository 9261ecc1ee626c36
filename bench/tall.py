"""Tall factors by rows or by columns in memory: what `tune` chooses from.

    python bench/tall.py                 one thread
    python bench/tall.py --threads 2

Times of F.linear(x, W, bias) over matrices that together do not fit into the caches, each order in
turn; float32. Above 1 the order of columns is faster. Wide matrices are there to see why they stay.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from bench.report import machine  # noqa: E402
from tensorlrf.nn.tall import columns_first  # noqa: E402
from tensorlrf.ops import time_calls  # noqa: E402

TALL = ((384, 96), (576, 160), (1024, 64), (1536, 160), (2048, 256), (4096, 512), (49152, 144))
WIDE = ((160, 576), (512, 4096), (1024, 1024))
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 512)
NUMBERS = 20_000_000
"""Of all matrices of a shape together: 80 MB."""
MOST = 40
FLOPS = 1e9
"""Of one call of all matrices, at most."""

NOTE = "F.linear on matrices out x in, float32: time by rows over time by columns, medians in turn."


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.4, help="of each measurement")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = [_row(shape, given.seconds) for shape in (*TALL, *WIDE)]
    about = machine("cpu")
    given.results.mkdir(parents=True, exist_ok=True)
    path = given.results / "tall.json"
    path.write_text(json.dumps({"machine": about, "note": NOTE, "rows": rows}, indent=1) + "\n")
    path.with_suffix(".md").write_text(_table(rows, about))


@torch.no_grad()
def _row(shape: tuple[int, int], seconds: float) -> dict[str, Any]:
    m, n = shape
    ratios: dict[int, float] = {}
    for rows in ROWS:
        many = int(max(1, min(MOST, NUMBERS / (m * n), FLOPS / (2 * m * n * rows))))
        matrices = [torch.randn(m, n) for _ in range(many)]
        turned = [columns_first(matrix) for matrix in matrices]
        x, bias = torch.randn(rows, n), torch.zeros(m)
        times = time_calls(
            {"rows": _calls(x, matrices, bias), "columns": _calls(x, turned, bias)},
            seconds=seconds,
        )
        ratios[rows] = times.median("rows") / times.median("columns")
    print(shape, ratios, flush=True)
    return {"out": m, "in": n, "ratios": ratios}


def _calls(x: Tensor, matrices: list[Tensor], bias: Tensor) -> Callable[[], object]:
    return lambda: [F.linear(x, matrix, bias) for matrix in matrices]


def _table(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    lines = ["# tall", "", ", ".join(f"{k} {v}" for k, v in about.items()), "", NOTE, ""]
    lines += [f"| out x in | {' | '.join(f'{n} rows' for n in ROWS)} |"]
    lines += ["| --- " * (1 + len(ROWS)) + "|"]
    for row in rows:
        cells = [f"{row['ratios'][n]:.2f}" for n in ROWS]
        lines.append(f"| {row['out']} x {row['in']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
