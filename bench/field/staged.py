"""Stages of residuals on our own CNN and on MiniLM: the two tables of the sketch "SVDLoRA".

The first has 1 to 9 stages at the same number of parameters, the second three stages at 10 to 100%
of the parameters of the weight. Each has plain stages, which are one SVD of the summed rank,
whatever their number, and stages in int8 and int4, which are not: every stage sees what rounding
the ones before it lost. Errors are of the weight, means over the layers.

    python bench/field/staged.py            # a few minutes
    python bench/field/staged.py --small    # to see that it runs
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

import tensorlrf  # noqa: E402
from bench.report import Row, machine, write_results  # noqa: E402

KINDS = ("svd", "svd:int8", "svd:int4")
STAGES = (1, 2, 3, 4, 5, 6, 7, 8, 9)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SHARE, THREE = 0.3, 3
NOTE = (
    "Relative error of the weights, mean over the layers; `one` is that of one SVD of the summed "
    "rank, in floats or with both factors rounded once. Plain stages equal it. Parameters are "
    "counted, not bytes. Times are left out: the machine was shared."
)


def minilm(limit: int | None) -> dict[str, Tensor]:
    """The linear layers of the first two blocks of its encoder, six each."""
    from minilm import load_minilm

    model = load_minilm()
    found = {
        name: layer.weight.detach()
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and "encoder" in name
    }
    return dict(list(found.items())[: limit or 12])


def cnn(limit: int | None) -> dict[str, Tensor]:
    """The kernels of the CNN of examples/own_cnn.py, as matrices; not its first one, (32, 9)."""
    import own_cnn

    found = {
        name: layer.weight.detach().flatten(1)
        for name, layer in own_cnn.train(*own_cnn.digits("train", 4000)).named_modules()
        if isinstance(layer, torch.nn.Conv2d) and layer.in_channels > 1
    }
    return dict(list(found.items())[:limit])


def random(limit: int | None) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(0)
    return {str(k): torch.randn(48, 64, generator=draws) for k in range(limit or 2)}


MODELS = {"cnn": cnn, "minilm": minilm, "random": random}


def error(weights: Sequence[Tensor], kind: str, count: int, share: float) -> float:
    """Mean of this many stages at a share of the parameters."""
    found = []
    for w in weights:
        m, n = w.shape
        rank = max(count, min(m, n, int(share * m * n / (m + n))))
        found.append(tensorlrf.staged(w, rank, stages=(kind,) * count).rel_error(w))
    return statistics.fmean(found)


def rows(
    model: str, weights: dict[str, Tensor], stages: Sequence[int], shares: Sequence[float]
) -> list[Row]:
    found = []
    single = cache(lambda kind, share: error(list(weights.values()), kind, 1, share))
    cases = [(f"{k} stages at {SHARE:.0%}", k, SHARE) for k in stages]
    cases += [(f"{THREE} stages at {share:.0%}", THREE, share) for share in shares]
    for case, count, share in cases:
        for kind in KINDS:
            own = error(list(weights.values()), kind, count, share)
            info = {"error": round(own, 5), "one": round(single(kind, share), 5)}
            found.append(Row(f"{model}, {len(weights)} layers, {case}", kind, 0.0, 0.0, 1, info))
            print(found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="*", help="of cnn, minilm; both by default")
    parser.add_argument("--limit", type=int, help="layers of a model, all by default")
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--small", action="store_true", help="to see that it runs")
    given = parser.parse_args()
    if given.small:
        rows("random", random(2), (1, 3), (0.5,))
        return
    found: list[Row] = []
    for model in given.models or ("cnn", "minilm"):
        found += rows(model, MODELS[model](given.limit), STAGES, SHARES)
    write_results(given.results, "_".join(["staged", *given.models]), found, machine("cpu"), NOTE)


if __name__ == "__main__":
    main()
