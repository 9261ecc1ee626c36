"""Moments of one wide layer, whole and sketched; and the memory of calibration with more batches.

    python bench/moments.py

A linear layer of 14,336 inputs and 4,096 outputs: its weight has singular values of about k^-1/2,
its inputs a covariance with eigenvalues k^-1 along directions that mix all columns, and "error" is
that of an SVD with a quarter of the parameters, of the outputs on inputs that no fit has seen.
"gather s" is what the moments of all inputs take, the time of the row that of the fit, "peak MB"
the most anonymous memory of either above what the process had before, and "file MB" what a file of
moments has of them. Each form in a process of its own.

Then a small language model of blocks, calibrated on 12 and on 48 batches of token numbers, in
processes of their own: the peak of anonymous memory, and how much it grows.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import tensorlrf  # noqa: E402
from bench import own_process  # noqa: E402
from bench.anonymous import anonymous  # noqa: E402
from bench.report import Row, machine, write_results  # noqa: E402
from bench.sketches import hadamard  # noqa: E402
from tensorlrf.compression.calibration._dense_layer import DenseLayer  # noqa: E402
from tensorlrf.compression.calibration._layer_moments import LayerMoments  # noqa: E402
from tensorlrf.compression.calibration.moments._form import FULL, Form  # noqa: E402
from tensorlrf.compression.fit._factor import factor  # noqa: E402
from tensorlrf.compression.fit._factored import Options  # noqa: E402
from tensorlrf.compression.moments._layer import shapes_of, unseen  # noqa: E402

OUTPUTS, COLUMNS = 4096, 14336
ROWS, HELD = 16384, 3072
BATCH = 1024
SHARE = 0.25
WIDTH, BLOCKS, WORDS, TOKENS = 128, 3, 500, 64
FEW, MANY = 12, 48
NOTE = "See bench/moments.py for the inputs and the columns."


class Peak:
    """The most anonymous memory while it is entered, again and again."""

    def __init__(self) -> None:
        self.before, self.bytes = anonymous(), 0
        self._on, self._done = threading.Event(), threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while not self._done.is_set():
            if self._on.wait(0.1):
                self.bytes = max(self.bytes, anonymous() - self.before)
                time.sleep(0.005)

    @contextmanager
    def watching(self) -> Iterator[None]:
        self._on.set()
        try:
            yield
        finally:
            self.bytes = max(self.bytes, anonymous() - self.before)
            self._on.clear()


class Inputs:
    """Rows with n columns, n = 2^k times what is odd."""

    def __init__(self, n: int) -> None:
        fixed = torch.Generator().manual_seed(0)
        self.n, self.base = n, n & -n
        self.signs = [torch.randint(0, 2, (n,), generator=fixed) * 2.0 - 1 for _ in range(3)]
        self.order = torch.randperm(n, generator=fixed)
        self.spread = torch.arange(1, n + 1).float() ** -0.5

    def batch(self, seed: int) -> Tensor:
        draws = torch.Generator().manual_seed(seed)
        x = torch.randn(BATCH, self.n, generator=draws) * self.spread
        for one in self.signs:
            x = hadamard((x * one).reshape(-1, self.base)).reshape(BATCH, self.n)[:, self.order]
        return x


def layer_of(outputs: int, columns: int) -> nn.Linear:
    draws = torch.Generator().manual_seed(9)
    fall = torch.arange(1, outputs + 1).float() ** -0.5
    layer = nn.Linear(columns, outputs)
    with torch.no_grad():
        left = torch.randn(outputs, outputs, generator=draws) * fall
        layer.weight.copy_(left @ torch.randn(outputs, columns, generator=draws) / columns**0.5)
    return layer


def form_of(word: str) -> Form:
    kind, _, size = word.partition(" ")
    return FULL if kind == "full" else Form(kind, int(size))


def forms(outputs: int, columns: int) -> list[str]:
    """Those that are tried, of these sizes."""
    sketch = 2 ** int(math.log2(columns // 16))
    return ["full", f"image {outputs}", f"image {outputs // 2}", f"sketch {sketch}"]


def wide(word: str, outputs: int, columns: int, rows: int, held: int) -> dict[str, Any]:
    """One form of a layer's moments, gathered and fitted to."""
    module, inputs = layer_of(outputs, columns), Inputs(columns)
    layer, weight, form = DenseLayer.of(module), module.weight.detach(), form_of(word)
    unheard = [inputs.batch(1_000_000 + k) for k in range(max(1, held // BATCH))]
    peak, gather = Peak(), 0.0
    seen = LayerMoments(layer, lags=False, holds_out=False, form=form)
    for k in range(max(1, rows // BATCH)):
        x = inputs.batch(k)
        begun = time.perf_counter()
        with peak.watching():
            seen.add(x, None, held=False)
        gather += time.perf_counter() - begun
        del x
    begun = time.perf_counter()
    with peak.watching():
        made = factor("layer", layer, tensorlrf.SVD(rank=SHARE), seen, Options())
    fit = time.perf_counter() - begun
    left = weight - made.factors.to_dense()
    lost = sum(float((x @ left.T).square().sum()) for x in unheard)
    whole = sum(float((x @ weight.T).square().sum()) for x in unheard)
    sizes = shapes_of(unseen("layer", layer, form)).values()
    return {
        "gather s": round(gather, 1),
        "fit": fit,
        "error": (lost / whole) ** 0.5,
        "peak MB": round(peak.bytes / 1e6),
        "file MB": round(8 * sum(map(math.prod, sizes)) / 1e6),
        "shrunk": made.shrinkage,
    }


class Block(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(n)
        self.q, self.k, self.v, self.o = (nn.Linear(n, n) for _ in range(4))
        self.up, self.down = nn.Linear(n, 4 * n), nn.Linear(4 * n, n)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.o(torch.softmax(self.q(y) @ self.k(y).mT / y.shape[-1] ** 0.5, -1) @ self.v(y))
        out: Tensor = x + self.down(torch.relu(self.up(x)))
        return out


def language_model(width: int, blocks: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(WORDS, width), *(Block(width) for _ in range(blocks)), nn.Linear(width, WORDS)
    ).eval()


WAYS = ("moments", "prefix, one batch at a time", "original, one batch at a time")


def calibrated(way: str, batches: int, width: int, blocks: int) -> dict[str, Any]:
    """The peak of one calibration."""
    model, draws = language_model(width, blocks), torch.Generator().manual_seed(1)
    data = [torch.randint(WORDS, (8, TOKENS), generator=draws) for _ in range(batches)]
    tensorlrf.calibrate(model, data[:2], progress=False)  # what is loaded on the way counts not
    peak = Peak()
    begun = time.perf_counter()
    with peak.watching():
        if way == "moments":
            tensorlrf.calibrate(model, data, progress=False)
        else:
            tensorlrf.compress(
                model, keep_params=0.5, calibration=data, target=way.partition(",")[0], rerun=True,
                allocation="uniform", metric="outputs", progress=False,
            )  # fmt: skip
    return {"seconds": time.perf_counter() - begun, "peak": peak.bytes}


def measured(what: str, *arguments: Any) -> dict[str, Any]:
    # What is freed goes back at once, or the peak would be one of the allocator.
    return own_process.measured(
        __file__, what, json.dumps(arguments), MALLOC_MMAP_THRESHOLD_="65536"
    )


def layer_rows(outputs: int, columns: int, rows: int, held: int) -> Iterator[Row]:
    whole: float | None = None
    for word in forms(outputs, columns):
        info = measured("wide", word, outputs, columns, rows, held)
        fit, whole = info.pop("fit"), info["error"] if whole is None else whole
        info["over full"] = round(info["error"] / whole, 4)
        info["error"] = round(info["error"], 4)
        case = f"one layer of {outputs} x {columns}, {rows:,} rows"
        yield Row(case, str(form_of(word)), fit, fit, 1, info)


def memory_rows(width: int, blocks: int) -> Iterator[Row]:
    for way in WAYS:
        few, many = (measured("calibrated", way, n, width, blocks) for n in (FEW, MANY))
        info = {
            f"MB of {FEW} batches": round(few["peak"] / 1e6, 1),
            f"MB of {MANY}": round(many["peak"] / 1e6, 1),
            "growth": f"{many['peak'] / few['peak'] - 1:+.1%}",
        }
        seconds = many["seconds"]
        yield Row(f"calibration memory, {MANY} batches", way, seconds, seconds, 1, info)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=("layer", "memory"))
    parser.add_argument("--part", type=int, default=1, help="a layer of 1 / PART of these sizes")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.measure:
        what, arguments = given.measure
        print(json.dumps({"wide": wide, "calibrated": calibrated}[what](*json.loads(arguments))))
        return
    rows: list[Row] = []
    parts = {
        "layer": lambda: layer_rows(*(k // given.part for k in (OUTPUTS, COLUMNS, ROWS, HELD))),
        "memory": lambda: memory_rows(WIDTH, BLOCKS),
    }
    for name, part in parts.items():
        for row in part() if given.only in (None, name) else ():
            rows.append(row)
            print(row, flush=True)
            write_results(given.results, "moments", rows, machine("cpu"), NOTE)


if __name__ == "__main__":
    main()
