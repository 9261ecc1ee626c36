"""Block terms of conv kernels of the CRAFT detector beside Tucker-2 and CP, at equal parameters.

    python bench/field/block_terms.py --layers slice1.10    # ten minutes of one thread
    python bench/field/block_terms.py --small    # one layer, few sweeps, to see that it runs

Each kernel is brought to a share of its parameters by every format, once by its weight alone and
once in the metric of its calibration inputs, and judged on held-out inputs.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

from bench.format_layers import SOURCES  # noqa: E402
from bench.report import Row, machine, write_results  # noqa: E402
from tensorlrf.decomposition import fit_block_term, fit_cp, fit_tucker  # noqa: E402

SHARES = (0.5, 0.25)
TERMS = (2, 4, 8)
NOTE = (
    "Relative errors at the same share of the parameters (kept, of 1), of the weight for fits to "
    "it, and of the outputs on held-out inputs. Seconds are those of the fit, one "
    "thread of a machine with other work."
)


def of_outputs(weight: Tensor, dense: Tensor, held: Tensor) -> float:
    """sqrt(tr(D G D^T) / tr(W G W^T))."""
    w, d = (t.double().flatten(1) for t in (weight, weight - dense))
    return math.sqrt(float(((d @ held) * d).sum() / ((w @ held) * w).sum()))


def ways(sweeps: int | None) -> Iterator[tuple[str, Any]]:
    """(a name, what brings a kernel to a share of its parameters)."""
    few: dict[str, Any] = {} if sweeps is None else {"n_iter_max": sweeps}
    yield "Tucker-2", partial(fit_tucker, modes=(0, 1), **few)
    yield "CP", partial(fit_cp, random_state=0, **few)
    for count in TERMS:
        own = {"n_terms": count, "modes": (0, 1), "random_state": 0}
        yield f"{count} block terms", partial(fit_block_term, **own, **few)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--layers", nargs="+", help="short names of bench/format_layers.py")
    parser.add_argument("--small", action="store_true", help="to see that it runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    source = SOURCES["craft"]()
    names = given.layers or list(source.layers)
    layers = {
        name: layer
        for name, layer in source.made(names[:1] if given.small else names).items()
        if layer.weight.ndim == 4 and layer.weight.shape[2] > 1
    }
    rows = []
    for name, layer in layers.items():
        weight = layer.weight.detach()
        for share in SHARES:
            case = f"{name} {'x'.join(map(str, weight.shape))} at {share}"
            for metric, gram in (("weight", None), ("inputs", layer.gram)):
                for way, fit in ways(3 if given.small else None):
                    begun = time.perf_counter()
                    found = fit(weight, share, gram=gram).factors
                    seconds = time.perf_counter() - begun
                    info = {
                        "rel_error": found.rel_error(weight),
                        "held_out": of_outputs(weight, found.to_dense(), layer.held),
                        "kept": round(found.n_params / weight.numel(), 4),
                    }
                    rows.append(Row(case, f"{way}, by {metric}", seconds, seconds, 1, info))
                    print(rows[-1], flush=True)
    write_results(given.results, "field_block_terms", rows, machine("cpu"), NOTE)


if __name__ == "__main__":
    main()
