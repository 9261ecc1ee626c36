"""Gates of LSTMs that read words: one low rank for all of a matrix, or one for each gate.

    python bench/recognizer_gates.py                                  all rows not there yet
    python bench/recognizer_gates.py --rows english_g2:.5:auto        this one, measured anew

The recogniser of `examples/recognizer.py`, all its weights as there, with `SVD(gates=)` of the
third word. Words are those of the validation split, which settings are chosen by. Each row is a
process of its own, and is written as soon as it is measured.
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

import numpy as np  # noqa: E402
import recognizer  # noqa: E402
from words import make_words  # noqa: E402

from bench.judged import Figure  # noqa: E402
from bench.row_by_row import asked, higher, line, measure_rows, said, tables  # noqa: E402

TOGETHER, APART, AUTO = WORDS = ("together", "apart", "auto")

ROWS = tuple(f"english_g2:{keep}:{word}" for keep in (0.5, 0.35) for word in WORDS)

N_WORDS = 1500

FIGURE = Figure("words right", lambda scores: float(scores.mean()))

HEAD = (
    "english_g2, all its weights at a share, compressed without training on 512 words as "
    "examples/recognizer.py did it before losses of its convolutions were counted by a quarter, "
    "with SVD(gates=...): the four gates of a matrix of an LSTM "
    "on one low rank together, each on its own at as many parameters apart, or whichever leaves "
    f"clearly less error on inputs held out (auto). Words right: of {N_WORDS:,} of the validation "
    "split. Over together: how many more, over words drawn for both alike. Below, of each matrix "
    "of the LSTMs, the relative error of its outputs on calibration inputs held out, in each of "
    "the models; behind that of auto what it chose, and what it saw of the two there, in the "
    "metric of the fit. Where auto has all of them together it is the model of together."
)


def measured(name: str, keep: float, word: str, n_batches: int | None) -> dict[str, Any]:
    """One row, with whether each word is read right."""
    dense = recognizer.load_recognizer()
    n_words = recognizer.N_CALIBRATION if n_batches is None else n_batches * recognizer.BATCH
    start = time.process_time()
    small, report = recognizer.compressed(dense, keep, gates=word, n_words=n_words)
    fitted = time.process_time() - start
    read = recognizer.right(small, make_words("validation", N_WORDS))
    value, span = FIGURE.told(np.array(read, dtype=float)[:, None])
    matrices = {}
    for row in report.layers:
        if row.factored and ".rnn." in row.name:
            choice = row.gates
            tried = None if choice is None else [choice.error_together, choice.error_apart]
            takes = word if choice is None else (TOGETHER, APART)[choice.apart]
            matrices[row.name] = {
                "error": row.output_error, "gates": takes, "tried": tried,
                "params": row.params_after,
            }  # fmt: skip
    return {
        "model": name,
        "keep": keep,
        "gates": word,
        "kept": report.eligible.share,
        "whole": report.model.share,
        "chosen": [report.allotment.rule, report.metric or ""],
        "figure": value,
        "interval": span,
        "matrices": matrices,
        "model_error": report.model_error,
        "scores": [[int(one)] for one in read],
        "fit_s": fitted,
        "calibration": n_words,
    }


# ---- the files --------------------------------------------------------------------------------


def markdown(content: Mapping[str, Any]) -> str:
    return tables("recognizer_gates", HEAD, content, _table)


def _table(_: str, rows: list[dict[str, Any]]) -> list[str]:
    """The models, and below them the matrices of each share."""
    names = ["kept", "gates", "words right [95%]", "over together [95%]", "error of the outputs",
             "apart of", "fit s"]  # fmt: skip
    lines = [line(names), line(["---"] * len(names))]
    by_share: dict[float, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_share.setdefault(row["keep"], {})[row["gates"]] = row
    for row in rows:
        base = by_share[row["keep"]].get(TOGETHER)
        beside = "" if base is None or base is row else higher(FIGURE, row, base)
        matrices = row["matrices"].values()
        apart = f"{sum(one['gates'] == APART for one in matrices)} of {len(matrices)}"
        lines.append(
            line(
                [f"{row['kept']:.3f}", row["gates"], said(row["figure"], row["interval"]), beside,
                 f"{row['model_error']:.4f}", apart, f"{row['fit_s']:.0f}"]
            )
        )  # fmt: skip
    for keep, models in by_share.items():
        lines += ["", f"### {keep:g}", "", *_matrices(models)]
    return lines


def _matrices(models: Mapping[str, dict[str, Any]]) -> list[str]:
    """Errors of the LSTMs' matrices, a column for each model."""
    lines = [line(["matrix", *models]), line(["---"] * (1 + len(models)))]
    for name in next(iter(models.values()))["matrices"]:
        cells = [name]
        for word, row in models.items():
            one = row["matrices"].get(name)
            told = "dense" if one is None else f"{one['error']:.4f}"
            if one is not None and word == AUTO and one["tried"] is not None:
                together, apart = one["tried"]
                told += f" {one['gates']} ({together:.4f} together, {apart:.4f} apart)"
            cells.append(told)
        lines.append(line(cells))
    return lines


def main() -> None:
    measure_rows(__file__, asked(__doc__, "english_g2:SHARE:GATES"), ROWS, measured, markdown)


if __name__ == "__main__":
    main()
