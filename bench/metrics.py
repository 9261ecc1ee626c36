"""`metric=` of `compress`, at equal ranks: what the model loses on inputs held out, and on others.

    python bench/metrics.py minilm .6:independent:outputs .6:independent:loss .6:original:auto
    python bench/metrics.py efficientnet .8:independent:outputs .8:independent:loss

Rows are added to the files, or measured anew.

Ranks are those of the rule "fisher" on the same calibration batches; the time is that of `apply`,
calibration and gradients included. "held-out loss" is that of the whole model (1 - cosine of pooled
embeddings, or KL), on batches out of the fit, by which "auto" chooses; the figures behind it are on
inputs that no choice saw.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import tensorlrf  # noqa: E402
from bench.report import Row, machine, write_results  # noqa: E402
from bench.subjects import Judge, subject  # noqa: E402
from tensorlrf.compression.calibration._layer_moments import Calibration  # noqa: E402
from tensorlrf.compression.calibration.batches import call  # noqa: E402
from tensorlrf.compression.losses._measured import loss_of  # noqa: E402
from tensorlrf.compression.losses._output_loss import OutputLoss  # noqa: E402
from tensorlrf.nn.copies import replica  # noqa: E402

BATCHES: dict[str, Callable[[list[Any]], list[Any]]] = {
    "minilm": lambda batches: batches[::3],
    "smollm2": lambda batches: batches[:8],
}
"""Of the calibration, where all of it would take long."""


class Pooled(nn.Module):
    """A sentence encoder with what its users read: the mean over a text's tokens."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden: Tensor = self.encoder(
            input_ids=input_ids, token_type_ids=token_type_ids, attention_mask=attention_mask
        ).last_hidden_state
        tokens = attention_mask[..., None].to(hidden.dtype)
        return (hidden * tokens).sum(1) / tokens.sum(1)


def rows_of(name: str, specs: list[str]) -> list[Row]:
    """Raises ValueError for what is no SHARE:TARGET:METRIC."""
    about = subject(name)
    dense, skip, kind = about.load(), list(about.skip), "kl"
    judge: Judge = about.judge(dense)
    if name == "minilm":
        dense, skip, kind = Pooled(dense).eval(), [f"encoder.{glob}" for glob in skip], "cosine"
    batches = BATCHES.get(name, list)(about.calibration())
    found = tensorlrf.sensitivity(
        dense, batches, rule="fisher", loss=kind, skip=skip, progress=False
    )
    data = Calibration.read(batches, dense, 0.1)
    assert data is not None
    loss, held = OutputLoss(kind), data.held_out
    wanted = [call(replica(dense), batch) for batch in held]
    rows = []
    for spec in specs:
        keep, target, metric = spec.split(":")
        plan = tensorlrf.plan(dense, keep_params=float(keep), skip=skip, sensitivity=found)
        start = time.perf_counter()
        small, report = tensorlrf.apply(
            dense, plan, calibration=batches, target=target, metric=metric, loss=kind,
            progress=False,
        )  # fmt: skip
        took = time.perf_counter() - start
        lost = loss_of(small, wanted, held, loss)
        seen = small.encoder if isinstance(small, Pooled) else small
        info = {"held-out loss": lost, **judge(seen), "chosen": report.metric}
        rows.append(Row(f"{name} {float(keep)} {target}", metric, took, took, 1, info))
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("model")
    parser.add_argument("rows", nargs="+", help="SHARE:TARGET:METRIC")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = rows_of(given.model, given.rows)
    path = given.results / "metrics.json"
    former = [Row(**row) for row in json.loads(path.read_text())["rows"]] if path.exists() else []
    anew = {(row.case, row.variant) for row in rows}
    kept = [row for row in former if (row.case, row.variant) not in anew]
    ordered = sorted([*kept, *rows], key=lambda row: row.case)
    note = " ".join(__doc__.rpartition("\n\n")[2].split())
    write_results(given.results, "metrics", ordered, machine("cpu"), note)


if __name__ == "__main__":
    main()
