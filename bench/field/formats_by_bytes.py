"""Formats on real layers at equal bytes: factors in floats and in int8, sums, dictionaries, codes.

Each weight of CRAFT, MiniLM and SmolLM2 is brought to the same share of its bytes in every format,
in the metric of its calibration inputs, and judged on held-out ones. Beside them: the weight in
int8 and int4 by itself; pruning in that metric, its entries stored as `SparseTensor` does and as a
map of bits with the values refitted; and a bound, see `bound`.

    python bench/field/formats_by_bytes.py         # a quarter of an hour of one thread
    python bench/field/formats_by_bytes.py craft   # of one model alone
    python bench/field/formats_by_bytes.py --small   # random layers, to see that it runs
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

import tensorlrf  # noqa: E402
from bench.format_layers import SOURCES, Layer  # noqa: E402
from bench.report import Row, machine, write_results  # noqa: E402
from tensorlrf.decomposition._target import Target  # noqa: E402
from tensorlrf.decomposition.sums._support import Support  # noqa: E402
from tensorlrf.errors import TensorlrfError  # noqa: E402
from tensorlrf.factors import Factors, Quantized  # noqa: E402

SHARES = (0.25, 0.15, 0.08)
NOTE = (
    "Relative errors of the outputs on held-out inputs at the same share of the bytes of the "
    "weight in float32; `bytes` is what was reached. int8 and int4 alone have the bytes that they "
    "have. Fits are data-aware, and no setting was chosen by held-out inputs. Pruned with a map of "
    "bits, an entry costs its value and each place a bit, and values are refitted; by coordinates "
    "an entry is twelve bytes. Times are left out: the machine was shared."
)


def error(weight: Tensor, dense: Tensor, held: Tensor) -> float:
    """sqrt(tr(D G D^T) / tr(W G W^T))."""
    w, d = (t.double().flatten(1) for t in (weight, weight - dense.reshape(weight.shape)))
    return math.sqrt(float(((d @ held) * d).sum() / ((w @ held) * w).sum()))


def three(number: float) -> float:
    """Of its digits."""
    return float(f"{number:.3g}")


Found = tuple[Tensor, int]
"""A matrix that stands for the weight, and its bytes."""


def ways(w: Tensor, gram: Tensor, share: float) -> Iterator[tuple[str, Callable[[], Found]]]:
    """(a name, what brings the matrix w to the share of its bytes)."""
    _m, n = w.shape
    few = {"n_iter_max": 10}

    def of(make: Callable[..., Factors], *args: Any, **options: Any) -> Callable[[], Found]:
        def found() -> Found:
            factors = make(w, *args, **options)
            return factors.to_dense(), factors.n_bytes

        return found

    yield "low rank, floats", of(tensorlrf.svd, share, gram=gram)
    yield "low rank, int8", of(tensorlrf.lplr, share, gram=gram, **few)
    yield "low rank, int4", of(tensorlrf.lplr, share, codes="int4", gram=gram, **few)
    # A sixth of the bytes for entries, of twelve bytes each.
    sparsity = 1 - share / 6 / 3
    summed = of(tensorlrf.low_rank_plus_sparse, share, sparsity=sparsity, gram=gram, **few)
    yield "low rank + sparse", summed
    k = atoms(w, share)
    yield "dictionary", of(tensorlrf.dictionary, k, gram=gram, random_state=0, **few)
    yield "low rank + int4", of(tensorlrf.low_rank_plus_quantized, share, gram=gram, **few)
    yield "int8 alone", of(Quantized.encode, "int8")
    group = max(d for d in range(1, min(n, 64) + 1) if n % d == 0)
    yield "int4 alone", of(Quantized.encode, "int4", group=group)
    yield "pruned, coordinates", lambda: pruned(w, gram, share)
    yield "pruned, map of bits", lambda: mapped(w, gram, share)


def atoms(w: Tensor, share: float) -> int:
    """As many as a dictionary may have of which each row takes half: four bytes a number, and one
    a place (256 atoms at most) or two."""
    m, n = w.shape
    sizes = {k: 4 * k * n + m * -(-k // 2) * (5 if k <= 256 else 6) for k in range(1, min(m, n))}
    return max((k for k, size in sizes.items() if size <= share * w.nbytes), default=1)


def pruned(w: Tensor, gram: Tensor, share: float) -> Found:
    """The entries that count most, of twelve bytes each."""
    keep = Support("top", int(share * w.numel() / 3))
    sparse = tensorlrf.SparseTensor.of(w * keep.mask(w, Target.of(w, gram)))
    return sparse.to_dense(), sparse.n_bytes


def mapped(w: Tensor, gram: Tensor, share: float) -> Found:
    """A bit for each entry, and four bytes for each that is kept."""
    keep = int((share * 32 - 1) / 32 * w.numel())
    mask, entries = Support("top", keep).fitted(w, Target.of(w, gram))
    return entries, 4 * int(mask.sum()) + w.numel() // 8


def bound(w: Tensor, held: Tensor, share: float) -> float:
    """The least error at so many bits by reverse water-filling (Cover & Thomas 2006, section
    10.3.3), of coefficients that are normal with variances a_i b_j.

    W goes into the principal axes of the held-out inputs, and its short side into its own singular
    vectors: b_j are the energies of inputs and a_i those of directions of outputs, or the other way
    about where there are more outputs than inputs. All of these are free: no format has less to
    store if its coefficients are no more unequal than that.
    """
    m, n = w.shape
    values, vectors = torch.linalg.eigh(held)
    turned = w.double() @ (vectors * values.clamp(min=0).sqrt())
    if m <= n:
        turned = torch.linalg.svd(turned, full_matrices=False)[0].T @ turned
    else:
        turned = turned @ torch.linalg.svd(turned, full_matrices=False)[2].T
    squares = turned.square()
    variances = torch.outer(squares.sum(1), squares.sum(0)) / squares.sum()
    bits, low, high = share * 32 * w.numel(), -300.0, math.log2(float(variances.max()))
    logs = variances.clamp(min=2.0**low).log2()
    for _ in range(60):  # the level of the water, its logarithm halved in between
        level = (low + high) / 2
        low, high = (
            (level, high) if float((logs - level).clamp(min=0).sum()) / 2 > bits else (low, level)
        )
    return math.sqrt(float(variances.clamp(max=2.0**high).sum() / squares.sum()))


def of_layer(case: str, layer: Layer) -> Iterator[Row]:
    """A row for each way at each share; the seconds of a fit are printed alone."""
    w = layer.weight.flatten(1).float().contiguous()
    for share in SHARES:
        told = f"{case}, {'x'.join(map(str, layer.weight.shape))}, {share:g} of the bytes"
        for name, make in ways(w, layer.gram, share):
            begun = time.perf_counter()
            try:
                dense, size = make()
            except TensorlrfError as refusal:
                print(f"{told}, {name}: {refusal}")
                continue
            print(f"{told}, {name}: {time.perf_counter() - begun:.1f} s")
            info = {
                "error": three(error(w, dense, layer.held)),
                "bytes": round(size / w.nbytes, 4),
            }
            yield Row(told, name, 0.0, 0.0, 1, info)
        info = {"error": three(bound(w, layer.held, share)), "bytes": share}
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
            print(row.case, row.variant, row.info, flush=True)
        odd = failing(found)
        told = f"int8 factors are below float ones in all but {len(odd)} cases. " + "; ".join(odd)
        if not given.small:
            stem = "_".join(["formats_by_bytes", *given.models])
            write_results(given.results, stem, found, machine("cpu"), f"{NOTE} {told.strip()}")
    print(told)


if __name__ == "__main__":
    main()
