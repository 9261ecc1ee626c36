"""The frontier of a model from one pass over calibration inputs: table, picture, and the time.

    python bench/frontier.py --results bench/results/cpu

The sentence encoder all-MiniLM-L6-v2 with mean pooling in the model: predicted loss, loss on
inputs held out and cosine to the dense embeddings of the documents of lee.cor, of cheap models of
plans, beside the dense model with rounded weights; and of some plans the cosine after a full fit.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

import minilm  # noqa: E402
import texts  # noqa: E402

import tensorlrf  # noqa: E402
from bench.report import machine  # noqa: E402
from tensorlrf.files.replace import replacing  # noqa: E402

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1)
FITTED = (0.6, 0.4, 0.25)
PART = 3  # of the calibration batches one is used


class Pooled(nn.Module):
    """The encoder, and the mean over a text's tokens."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, **batch: Tensor) -> Tensor:
        hidden = self.encoder(**batch).last_hidden_state  # (b, t, 384)
        mask = batch["attention_mask"][..., None].to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)


class Cosine:
    """Of each document the cosine to the dense embedding."""

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        self.batches = minilm.batches(tokenizer, texts.documents())
        self.wanted = self._embedded(model)
        self.seconds = 0.0

    def __call__(self, model: nn.Module) -> Tensor:
        start = time.perf_counter()
        cosines = nn.functional.cosine_similarity(self._embedded(model), self.wanted)
        self.seconds += time.perf_counter() - start
        return cosines

    def _embedded(self, model: nn.Module) -> Tensor:
        with torch.no_grad():
            return torch.cat([model(**batch) for batch in self.batches])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    given = parser.parse_args()
    tokenizer = minilm.load_tokenizer()
    model = Pooled(minilm.load_minilm()).eval()
    batches = minilm.calibration_batches(tokenizer)[::PART]
    skip = [f"encoder.{glob}" for glob in minilm.SKIP]
    metric = Cosine(model, tokenizer)

    start = time.perf_counter()
    found = tensorlrf.frontier(
        model, batches, evaluate=metric, shares=SHARES, evaluations=len(SHARES), skip=skip,
        loss="cosine",
    )  # fmt: skip
    seconds = time.perf_counter() - start
    print(found)
    fitted = []
    for share in FITTED:
        begin = time.perf_counter()
        small, _ = tensorlrf.apply(model, found.plan(share), calibration=batches)
        took = time.perf_counter() - begin
        fitted.append({"share": share, "cosine": float(metric(small).mean()), "fit s": took})
        print(fitted[-1])
    about = {
        "machine": machine("cpu"),
        "batches": len(batches),
        "seconds": seconds,
        "seconds of the metric": metric.seconds,
        "fitted": fitted,
        "frontier": json.loads(found.to_json()),
    }
    del about["frontier"]["plans"], about["frontier"]["sensitivity"]
    stem = given.results / "frontier_minilm"
    found.plot(stem.with_suffix(".png"))
    for suffix, text in ((".json", json.dumps(about, indent=1)), (".md", page(found, about))):
        with replacing(stem.with_suffix(suffix), overwrite=True) as temporary:
            Path(temporary).write_text(text + "\n", encoding="utf-8")


def page(found: tensorlrf.Frontier, about: dict[str, Any]) -> str:
    """The result in Markdown."""
    on = about["machine"]
    rows = "\n".join(
        f"| {row['share']:g} | {row['cosine']:.4f} | {row['fit s']:.0f} s |"
        for row in about["fitted"]
    )
    return f"""# Frontier of MiniLM

device {on["device"]}, threads {on["threads"]}, torch {on["torch"]}, python {on["python"]}. \
all-MiniLM-L6-v2 with mean pooling, the 36 linears of its encoder, {about["batches"]} calibration \
batches of 32 documents of lee_background.cor (the first 96 tokens of each), one of them held out. \
The metric is the mean cosine to the dense embedding over the 50 documents of lee.cor, with the \
bound on its drop at 95%. Plans are judged by cheap models, their layers cut along the directions \
of their outputs. The whole table took {about["seconds"]:.0f} s, of which the metric \
{about["seconds of the metric"]:.0f} s, in a busy hour of the machine.

![frontier](frontier_minilm.png)

{found.to_markdown()}
Three of these plans after a full fit, `apply` with the same batches:

| share | metric | fit |
| ---: | ---: | ---: |
{rows}"""


if __name__ == "__main__":
    main()
