"""Formats on real layers at equal bytes: factors in floats and in int8, sums, dictionaries, codes.

Each weight of CRAFT, MiniLM and SmolLM2 is brought to the same share of its bytes in every format,
in the metric of its calibration inputs, and judged on held-out ones. Beside them: the weight in
int8 and int4 by itself, magnitude pruning in that metric (values and coordinates counted), and a
bound: the rate that reverse water-filling needs for the error, were entries in the basis of the
singular vectors normal (Cover & Thomas 2006, section 10.3.3), at so many bits.

    python bench/field/formats_by_bytes.py craft minilm smollm2   # half an hour of one thread
    python bench/field/formats_by_bytes.py --small   # random layers, to see that it runs
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

import tensorlrf  # noqa: E402
from bench.format_layers import SOURCES, Layer  # noqa: E402
from bench.report import Row, machine, write_results  # noqa: E402
from tensorlrf.errors import TensorlrfError  # noqa: E402
from tensorlrf.factors import Factors, Quantized  # noqa: E402

SHARES = (0.25, 0.15)
NOTE = (
    "Relative errors of the outputs on held-out inputs at the same share of the bytes of the "
    "weight in float32, in `bytes` what was reached; data-aware fits. Seconds are those of the fit."
)


def error(weight: Tensor, dense: Tensor, held: Tensor) -> float:
    """sqrt(tr(D G D^T) / tr(W G W^T))."""
    w, d = (t.double().flatten(1) for t in (weight, weight - dense.reshape(weight.shape)))
    return math.sqrt(float(((d @ held) * d).sum() / ((w @ held) * w).sum()))


def ways(w: Tensor, gram: Tensor, share: float) -> Iterator[tuple[str, Callable[[], Factors]]]:
    """(a name, what brings the matrix w to the share of its bytes)."""
    _m, n = w.shape
    few = {"n_iter_max": 10}
    yield "low rank, floats", lambda: tensorlrf.svd(w, share, gram=gram)
    yield "low rank, int8", lambda: tensorlrf.lplr(w, share, gram=gram, **few)
    yield "low rank, int4", lambda: tensorlrf.lplr(w, share, codes="int4", gram=gram, **few)
    # A sixth of the bytes for entries, of twelve bytes each.
    sparsity = 1 - share / 6 / 3
    yield (
        "low rank + sparse",
        lambda: tensorlrf.low_rank_plus_sparse(w, share, sparsity=sparsity, gram=gram, **few),
    )
    yield "dictionary", lambda: tensorlrf.dictionary(w, share, gram=gram, random_state=0, **few)
    yield (
        "low rank + int4",
        lambda: tensorlrf.low_rank_plus_quantized(w, share, gram=gram, **few),
    )
    yield "int8 alone", lambda: Quantized.encode(w, "int8")
    group = max(d for d in range(1, min(n, 64) + 1) if n % d == 0)
    yield "int4 alone", lambda: Quantized.encode(w, "int4", group=group)
    yield "pruned", lambda: pruned(w, gram, share)


def pruned(w: Tensor, gram: Tensor, share: float) -> Factors:
    """The entries that count most, of twelve bytes each."""
    size = w.abs() * gram.diagonal().clamp(min=0).sqrt().to(w.dtype)
    keep = int(share * w.numel() / 3)
    mask = torch.zeros(w.numel(), dtype=torch.bool)
    mask[size.flatten().topk(keep).indices] = True
    return tensorlrf.SparseTensor.of(w * mask.view(w.shape))


def bound(w: Tensor, held: Tensor, share: float) -> float:
    """The least error at so many bits, of coefficients that are normal with the energies of the
    outputs: reverse water-filling, each of n directions having m of them."""
    m, _n = w.shape
    values, vectors = torch.linalg.eigh(held)
    turned = w.double() @ (vectors * values.clamp(min=0).sqrt())
    energies = torch.linalg.svdvals(turned).square()
    variances, bits = energies / m, share * 32 * w.numel()
    low, high = 0.0, float(variances.max())
    for _ in range(200):
        level = (low + high) / 2
        rate = m * 0.5 * (variances / max(level, 1e-300)).clamp(min=1).log2().sum()
        low, high = (level, high) if float(rate) > bits else (low, level)
    return math.sqrt(float(variances.clamp(max=high).sum() / variances.sum()))


def of_layer(case: str, layer: Layer) -> Iterator[Row]:
    w = layer.weight.flatten(1).float().contiguous()
    for share in SHARES:
        told = f"{case}, {'x'.join(map(str, layer.weight.shape))}, {share:g} of the bytes"
        for name, make in ways(w, layer.gram, share):
            begun = time.perf_counter()
            try:
                factors = make()
            except TensorlrfError as refusal:
                print(f"{told}, {name}: {refusal}")
                continue
            taken = time.perf_counter() - begun
            info = {
                "error": round(error(w, factors.to_dense(), layer.held), 4),
                "bytes": round(factors.n_bytes / w.nbytes, 4),
            }
            yield Row(told, name, taken, taken, 1, info)
        info = {"error": round(bound(w, layer.held, share), 4), "bytes": share}
        yield Row(told, "rate-distortion bound", 0.0, 0.0, 1, info)


def random_layers() -> Iterator[tuple[str, Layer]]:
    draws = torch.Generator().manual_seed(0)
    for m, n in ((64, 48), (48, 96)):
        w = torch.randn(m, n, generator=draws) * torch.logspace(0, -1, n)
        x, held = (torch.randn(n, 6 * n, generator=draws, dtype=torch.float64) for _ in range(2))
        grams = (t @ t.T / t.shape[1] for t in (x, held))
        yield "random", Layer(w, None, *grams, x[:, :4].T.float())


def layers(models: list[str], names: list[str] | None) -> Iterator[tuple[str, Layer]]:
    for model in models:
        source = SOURCES[model]()
        for name, layer in source.made(
            [k for k in source.layers if not names or k in names]
        ).items():
            yield f"{model} {name}", layer


def failing(rows: list[Row]) -> list[str]:
    """The rows in which int8 factors are not below those in floats."""
    by = {(row.case, row.variant): row.info["error"] for row in rows}
    return [
        case
        for case, way in by
        if way == "low rank, int8" and by[case, way] >= by[case, "low rank, floats"]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="*", help=f"of {', '.join(SOURCES)}; all by default")
    parser.add_argument("--layers", nargs="*", help="short names; all by default")
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--small", action="store_true", help="to see that it runs")
    given = parser.parse_args()
    found: list[Row] = []
    source = random_layers() if given.small else layers(given.models or list(SOURCES), given.layers)
    for case, layer in source:
        for row in of_layer(case, layer):
            found.append(row)
            print(row.case, row.variant, row.info, f"{row.median_s:.2f} s", flush=True)
    odd = failing(found)
    told = f"int8 factors are below float ones in all but {len(odd)} rows. " + "; ".join(odd)
    print(told)
    if not given.small:
        stem = "_".join(["formats_by_bytes", *given.models])
        write_results(given.results, stem, found, machine("cpu"), f"{NOTE} {told}")


if __name__ == "__main__":
    main()
