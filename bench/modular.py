"""Whole modules made smaller, beside factors of single layers at equal parameters.

    python bench/modular.py                       all rows that are not there yet
    python bench/modular.py --rows minilm:.6      this one, measured anew

Each row is a process of its own, and is written as soon as it is measured: `method="modular"` with
all else as it is by default, the loss and the readout those of the model's figure. The row of the
default method is the one of `allocation.json`, on the same machine and the same inputs. A share is
of what that factors; where `"modular"` knows other weights it is asked for the share of these at
which the whole model has as many parameters. Times are medians of a forward pass on the example,
the given model and the smaller one in turn, one thread.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# The examples are no package: what follows is found only from here on.
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

from torch import nn  # noqa: E402

import tensorlrf  # noqa: E402
from bench.allocation_ranks import spaced  # noqa: E402
from bench.judged import FIGURES, scorer  # noqa: E402
from bench.resident import Resident  # noqa: E402
from bench.row_by_row import (  # noqa: E402
    asked,
    higher,
    line,
    measure_rows,
    said,
    tables,
    times,
)
from bench.subjects import subject  # noqa: E402

ROWS = ("minilm:0.6", "minilm:0.4", "smollm2:0.8", "efficientnet:0.8", "efficientnet:0.6")

SKIP = {"efficientnet": ["_fc", "_conv_stem"]}
"""Where it is not what the default method leaves: depthwise convolutions go with their blocks."""

HEAD = (
    'Whole modules made smaller by `method="modular"`, all else by default: fewer channels of '
    "perceptrons and inverted bottlenecks, smaller heads of attentions. Default: factors of single "
    'layers, as many parameters in the whole model, `method="svd"` with `allocation="auto"` and '
    '`metric="auto"`, as in `allocation.md`. Over default: how much higher the figure is, over '
    "examples drawn for both alike. Latency: dense over smaller, a forward pass of the whole "
    "model, in turn. Times are CPU seconds."
)


def measured(name: str, keep: float, n_batches: int | None) -> dict[str, Any]:
    """One row, with what the model did on each example."""
    about, figure = subject(name), FIGURES[name]
    dense = about.load()
    batches = spaced(about.calibration(), n_batches)
    skip = SKIP.get(name, about.skip)
    params = sum(p.numel() for p in dense.parameters())
    gone = (1 - keep) * weights_of(dense, about.skip)
    known = weights_of(dense, skip, batches[0]) if name in SKIP else weights_of(dense, skip)
    resident, start = Resident(), time.process_time()
    small, report = tensorlrf.compress(
        dense, method="modular", keep_params=1 - gone / known, calibration=batches, skip=skip,
        loss=figure.loss, readout=figure.readout, progress=False,
    )  # fmt: skip
    fitted, peak = time.process_time() - start, resident.peak_mb()
    scores = scorer(name, dense)(small)
    value, span = figure.told(scores)
    from tensorlrf.compression._latency import measure_model

    times = measure_model(dense, small, [about.example()])
    return {
        "model": name,
        "keep": keep,
        "kept": report.eligible.share,
        "whole": report.model.share,
        "default_whole": 1 - gone / params,
        "chosen": [report.allotment.rule, report.metric],
        "left": sum(row.eligible and not row.factored for row in report.layers),
        "figure": value,
        "interval": span,
        "also": {key: told(scores) for key, told in figure.also.items()},
        "scores": scores[:, : figure.columns].tolist(),
        "latency": times,
        "fit_s": fitted,
        "peak_mb": peak,
        "batches": len(batches),
    }


def weights_of(model: nn.Module, skip: Sequence[str], batch: Any = None) -> int:
    """Of the layers that the default method may factor; with a batch of those that the modular one
    may make smaller."""
    from tensorlrf.compression._survey import survey, without_skipped
    from tensorlrf.compression.calibration._dense_layer import dense_layer_at
    from tensorlrf.compression.calibration.batches import Batch
    from tensorlrf.compression.modular._folds import Folds
    from tensorlrf.compression.modular._modular import with_depthwise
    from tensorlrf.compression.modular._recognised import recognised

    found = without_skipped(survey(model), model, skip)
    if batch is not None:
        found = with_depthwise(found, model, ())
    names = [one.name for one in found if one.eligible]
    if batch is not None:
        first = Batch.of(batch)
        structures, _ = recognised(Folds.of(model, first).model, names, first)
        names = [name for one in structures for name in one.layers]
    return sum(dense_layer_at(model, name).weight.numel() for name in names)


# ---- the files --------------------------------------------------------------------------------


def markdown(content: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    """A table a model, with the default beside."""
    return tables("modular", HEAD, content, lambda model, rows: _table(model, rows, others))


def _table(model: str, rows: list[dict[str, Any]], others: Mapping[str, Any]) -> list[str]:
    figure = FIGURES[model]
    names = ["kept", "whole model", "method", f"{figure.name} [95%]", "over default [95%]"]
    names += [f"{name} [95%]" for name in figure.also]
    names += ["latency", "fit s", "peak MB", "batches"]
    lines = [line(names), line(["---"] * len(names))]
    for row in rows:
        base = others.get(f"{model}:auto:{row['keep']:g}:original:auto")
        beside = ""
        if base is not None:
            base = {**base, "whole": row["default_whole"]} if "default_whole" in row else base
            lines.append(_of(base, "default", figure, "", ""))
            beside = higher(figure, row, base)
        took = f"modular (took {', '.join(row['chosen'])})"
        lines.append(_of(row, took, figure, beside, times(row["latency"])))
    return lines


def _of(row: Mapping[str, Any], method: str, figure: Any, beside: str, latency: str) -> str:
    also = [said(*row["also"][name]) for name in figure.also]
    whole = f"{row['whole']:.3f}" if "whole" in row else ""
    peak = f"{row['peak_mb']:.0f}" if row.get("peak_mb") is not None else ""
    value = said(row["figure"], row["interval"])
    cells = [f"{row['kept']:.3f}", whole, method, value, beside, *also, latency,
             f"{row['fit_s']:.0f}", peak, str(row["batches"])]  # fmt: skip
    return line(cells)


def main() -> None:
    given = asked(__doc__, "MODEL:SHARE")
    beside = given.results / "allocation.json"
    others = json.loads(beside.read_text())["rows"] if beside.exists() else {}
    measure_rows(__file__, given, ROWS, measured, lambda content: markdown(content, others))


if __name__ == "__main__":
    main()
