"""A wide linear layer fitted in all second moments of its inputs, in blocks, and in sketches.

    python bench/sketches.py --results bench/results/cpu

Inputs have a covariance with eigenvalues k^-a along directions that mix all columns; with
"outliers" one column in a hundred is ten times as large afterwards. "gather" is the time that the
moments of all inputs take, "fit" that of an SVD with a quarter of the parameters; "MB" what the
moments take while they are gathered, and "layer MB" what `memory_limit` is held against, with
inputs held out; "error" the relative error of the outputs on inputs that no fit has seen, and
"bound" what the sketch is off by at most, in the largest eigenvalue.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from bench.report import Row, machine, write_results  # noqa: E402
from tensorlrf import svd  # noqa: E402
from tensorlrf.compression.calibration._dense_layer import DenseLayer  # noqa: E402
from tensorlrf.compression.calibration._memory import Gathered  # noqa: E402
from tensorlrf.compression.calibration._statistics import Stream  # noqa: E402
from tensorlrf.compression.calibration.moments._form import FULL, Form  # noqa: E402
from tensorlrf.decomposition.second_moments import SecondMoments  # noqa: E402

SHARE = 0.25
ROWS = 2048
"""Of one batch."""


@dataclass(frozen=True)
class Inputs:
    """decay     a
    outliers  whether some columns are larger than others
    count     batches to fit to
    """

    decay: float
    outliers: bool
    count: int

    def __str__(self) -> str:
        tail = ", outliers" if self.outliers else ""
        return f"k^-{self.decay:g}{tail}, {self.count * ROWS:,} rows"

    def batches(self, n: int, seeds: range) -> Iterator[Tensor]:
        fixed = torch.Generator().manual_seed(0)
        signs = [torch.randint(0, 2, (n,), generator=fixed) * 2.0 - 1 for _ in range(2)]
        spread = torch.arange(1, n + 1).float() ** (-self.decay / 2)
        loud = torch.where(torch.rand(n, generator=fixed) < 0.01, 10.0, 1.0)
        for seed in seeds:
            x = torch.randn(ROWS, n, generator=torch.Generator().manual_seed(1 + seed)) * spread
            for one in signs:
                x = hadamard(x * one)
            yield x * loud if self.outliers else x


CASES = [
    (2048, 512, Inputs(1.0, False, 4)),
    (2048, 512, Inputs(1.0, True, 2)),
    (2048, 512, Inputs(2.0, False, 2)),
    (8192, 2048, Inputs(1.0, True, 2)),
]


def hadamard(x: Tensor) -> Tensor:
    """Rows (N, n) turned by the Hadamard matrix of n, a power of two."""
    n, h = x.shape[1], 1
    while h < n:
        pairs = x.reshape(len(x), -1, 2, h)
        x = torch.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], dim=2)
        x, h = x.reshape(len(pairs), n), 2 * h
    return x / n**0.5


def forms(n: int) -> list[Form | None]:
    blocks = [Form("blocks", n // k) for k in (32, 8)]
    sketches = [Form("sketch", n // k) for k in (128, 64, 32, 16)]
    return [FULL, *blocks, *sketches, None]


def measured(n: int, m: int, inputs: Inputs) -> Iterator[Row]:
    layer = nn.Linear(n, m)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(m, n, generator=torch.Generator().manual_seed(9)) / n**0.5)
    layer, weight = DenseLayer.of(layer), layer.weight.detach()
    rank = int(SHARE * n * m / (n + m))
    unseen = list(inputs.batches(n, range(1000, 1002)))
    whole = sum(float((x @ weight.T).square().sum()) for x in unseen)
    for form in forms(n):
        gather, told, gram = 0.0, "", None
        if form is not None:
            stream = Stream(layer, lags=False, form=form)
            for x in inputs.batches(n, range(inputs.count)):
                begun = time.perf_counter()
                stream.add(x)
                gather += time.perf_counter() - begun
            begun = time.perf_counter()
            (known,) = stream.statistics()
            gather += time.perf_counter() - begun
            told = str(known.gram) if form.kind == "sketch" else ""
        begun = time.perf_counter()
        if form is not None:
            gram = SecondMoments.known(known.shrunk(known.warranted).gram).with_outputs(weight)
            del known
        factors = svd(weight, rank, gram=gram)
        fit = time.perf_counter() - begun
        left = weight - factors.to_dense()
        lost = sum(float((x @ left.T).square().sum()) for x in unseen)
        info = {"gather s": round(gather, 1), "error": round((lost / whole) ** 0.5, 4)}
        if form is not None:
            need = Gathered(lags=False, held=True).need(layer, form)
            info |= {"MB": round(need.moments / 2e6), "layer MB": round(need.whole / 1e6)}
            info["bound"] = told.partition("off by ")[2].removesuffix(" at most")
        name = "plain" if form is None else str(form)
        print(f"{n} -> {m}, {inputs}: {name}: fit {fit:.1f} s {info}", flush=True)
        yield Row(f"{n} -> {m}, {inputs}", name, fit, fit, 1, info)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path)
    given = parser.parse_args()
    rows = []
    for n, m, inputs in CASES:
        rows += measured(n, m, inputs)
        if given.results is not None:
            note = "See bench/sketches.py for the inputs and the columns."
            write_results(given.results, "sketches", rows, machine("cpu"), note)


if __name__ == "__main__":
    main()
