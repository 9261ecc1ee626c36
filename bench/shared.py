"""Right factors that layers have in common, beside factors of their own at equal parameters.

    python bench/shared.py                              all rows that are not there yet
    python bench/shared.py --rows minilm:.6:inputs      this one, measured anew

Each row is a process of its own, and is written as soon as it is measured: `shared=` of the third
word, all else as it is by default, the loss and the readout those of the model's figure; "apart" is
the default itself. Times are medians of a forward pass on the example, the given model and the
smaller one in turn, one thread.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# The examples are no package: what follows is found only from here on.
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

import tensorlrf  # noqa: E402
from bench.allocation_ranks import spaced  # noqa: E402
from bench.judged import FIGURES, scorer  # noqa: E402
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

APART = "apart"

ROWS = tuple(f"minilm:{keep}:{word}" for keep in (0.6, 0.4) for word in (APART, "inputs", "layers"))

HEAD = (
    "One right factor for several layers, by `shared=`, where that has clearly less error on "
    "inputs held out than factors of their own: query, key and value (inputs), neighbours in depth "
    "(layers). Apart: the default at the same share of the same weights. Over apart: how much "
    "higher the figure is, over examples drawn for both alike. Bases: groups kept of those tried, "
    "and the layers in them. Latency: dense over smaller, a forward pass of the whole model, in "
    "turn. Times are CPU seconds."
)


def measured(name: str, keep: float, word: str, n_batches: int | None) -> dict[str, Any]:
    """One row, with what the model did on each example."""
    about, figure = subject(name), FIGURES[name]
    dense = about.load()
    batches = spaced(about.calibration(), n_batches)
    start = time.process_time()
    small, report = tensorlrf.compress(
        dense, keep_params=keep, calibration=batches, skip=about.skip, loss=figure.loss,
        readout=figure.readout, shared=None if word == APART else word, progress=False,
    )  # fmt: skip
    fitted = time.process_time() - start
    scores = scorer(name, dense)(small)
    value, span = figure.told(scores)
    from tensorlrf.compression._latency import measure_model

    kept = [basis for basis in report.bases if basis.kept]
    return {
        "model": name,
        "keep": keep,
        "shared": word,
        "kept": report.eligible.share,
        "whole": report.model.share,
        "chosen": [report.allotment.rule, report.metric or ""],
        "tried": len(report.bases),
        "bases": len(kept),
        "layers": sum(len(basis.layers) for basis in kept),
        "figure": value,
        "interval": span,
        "also": {key: told(scores) for key, told in figure.also.items()},
        "scores": scores[:, : figure.columns].tolist(),
        "latency": measure_model(dense, small, [about.example()]),
        "fit_s": fitted,
        "batches": len(batches),
    }


# ---- the files --------------------------------------------------------------------------------


def markdown(content: Mapping[str, Any]) -> str:
    """A table a model."""
    return tables("shared", HEAD, content, _table)


def _table(model: str, rows: list[dict[str, Any]]) -> list[str]:
    figure = FIGURES[model]
    names = ["kept", "shared", f"{figure.name} [95%]", "over apart [95%]"]
    names += [f"{name} [95%]" for name in figure.also]
    names += ["bases", "latency", "fit s", "batches"]
    lines = [line(names), line(["---"] * len(names))]
    apart = {row["keep"]: row for row in rows if row["shared"] == APART}
    for row in rows:
        beside, base = "", apart.get(row["keep"])
        if base is not None and base is not row:
            beside = higher(figure, row, base)
        bases = f"{row['bases']} of {row['tried']}, {row['layers']} layers" if row["tried"] else ""
        lines.append(
            line(
                [f"{row['kept']:.3f}", row["shared"], said(row["figure"], row["interval"]), beside,
                 *(said(*row["also"][name]) for name in figure.also), bases,
                 times(row["latency"]), f"{row['fit_s']:.0f}", str(row["batches"])]
            )
        )  # fmt: skip
    return lines


def main() -> None:
    measure_rows(__file__, asked(__doc__, "MODEL:SHARE:WORD"), ROWS, measured, markdown)


if __name__ == "__main__":
    main()
