"""Frontiers of the models of the examples from one pass over calibration inputs each.

    python bench/frontier.py minilm own_cnn efficientnet

Of each model, predicted loss, loss on inputs held out and a metric on test inputs, of cheap models
of plans for many shares, beside the dense model with rounded weights; and of some plans the metric
after a full fit. Files are frontier_MODEL.json, .md and .png.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
# The examples are no package: what follows is found only from here on.
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

import tensorlrf  # noqa: E402
from bench.judged import Scores, scorer  # noqa: E402
from bench.pooled import Pooled  # noqa: E402
from bench.report import machine  # noqa: E402
from tensorlrf.files.replace import replacing  # noqa: E402


@dataclass(frozen=True)
class Case:
    """A model and what its frontier is made of.

    model     as it is compressed
    batches   of calibration
    scores    of a model on each test example
    metric    the name of their mean
    note      what a reader must know
    shares    of its eligible weights to keep
    fitted    shares whose plans are carried out as well
    options   of `frontier` beside
    """

    model: nn.Module
    batches: list[Any]
    scores: Callable[[nn.Module], Scores]
    metric: str
    note: str
    shares: tuple[float, ...]
    fitted: tuple[float, ...]
    options: dict[str, Any] = field(default_factory=dict)


def minilm_case() -> Case:
    import minilm

    encoder = minilm.load_minilm()
    score = scorer("minilm", encoder)
    return Case(
        Pooled(encoder).eval(),
        minilm.calibration_batches(minilm.load_tokenizer())[::3],
        lambda pooled: score(pooled.encoder)[:, :1],  # cosines, before the embeddings
        "cosine",
        "all-MiniLM-L6-v2 with mean pooling, the 36 linears of its encoder, 4 calibration batches "
        "of 32 documents of lee_background.cor (the first 96 tokens of each). The metric is the "
        "mean cosine to the dense embedding over the 50 documents of lee.cor.",
        (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1),
        (0.6, 0.4, 0.25),
        {
            "skip": [f"encoder.{glob}" for glob in minilm.SKIP],
            "loss": "cosine",
            "example": minilm.example(minilm.load_tokenizer()),
        },
    )


def own_cnn_case() -> Case:
    import own_cnn

    x, y = own_cnn.digits("train", 4000)
    net = own_cnn.train(x, y)
    return Case(
        net,
        list(x[:1024].split(64)),
        scorer("own_cnn", net),
        "right",
        "The CNN of examples/own_cnn.py, its five convolutions, calibrated on 1,024 of the "
        "pictures that it was trained on. The metric is the share of 1,000 digits that are read "
        "right, in fonts that it was not trained on.",
        (0.8, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.07, 0.05),
        (0.25, 0.1),
        {"example": x[:64]},
    )


def efficientnet_case() -> Case:
    import efficientnet
    from pictures import crops, picture_set

    model = efficientnet.load_efficientnet()
    batches = [
        efficientnet.preprocess(crops(p.image, 16, seed))
        for seed, p in enumerate(picture_set("calibration"))
    ]
    return Case(
        model,
        batches,
        scorer("efficientnet", model),
        "agreement",
        "EfficientNet-lite0, its 1 x 1 convolutions, calibrated on 16 crops of each of 15 "
        "pictures, three of the pictures held out. The metric is the share of 8 crops of each of "
        "15 other pictures with the dense model's class, its bound over pictures.",
        (0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5),
        (0.8,),
        {
            "skip": efficientnet.SKIP,
            "holdout": 0.2,
            "example": efficientnet.example(),
        },
    )


CASES = {"minilm": minilm_case, "own_cnn": own_cnn_case, "efficientnet": efficientnet_case}


class Metric:
    """A metric for `frontier`: scores of examples, and of which row of them each one is."""

    def __init__(self, scores: Callable[[nn.Module], Scores]) -> None:
        self.scores = scores
        self.seconds = 0.0

    def __call__(self, model: nn.Module) -> tuple[Tensor, list[int]]:
        start = time.process_time()
        values = torch.from_numpy(self.scores(model))  # (examples, k)
        self.seconds += time.process_time() - start
        return values.flatten(), [k for k, row in enumerate(values) for _ in row]


def measure(name: str, results: Path) -> None:
    case = CASES[name]()
    metric = Metric(case.scores)
    start = time.process_time()
    found = tensorlrf.frontier(
        case.model, case.batches, evaluate=metric, shares=case.shares,
        evaluations=len(case.shares), progress=False, **case.options,
    )  # fmt: skip
    seconds = time.process_time() - start
    print(found, flush=True)
    fitted = []
    for share in case.fitted:
        begin = time.process_time()
        small, _ = tensorlrf.apply(
            case.model, found.plan(share), calibration=case.batches, progress=False
        )
        took = time.process_time() - begin
        value = float(case.scores(small).mean())
        fitted.append({"share": share, case.metric: value, "fit s": took})
        print(fitted[-1], flush=True)
    about = {
        "machine": machine("cpu"),
        "model": name,
        "metric": case.metric,
        "note": case.note,
        "seconds": seconds,
        "seconds of the metric": metric.seconds,
        "fitted": fitted,
        "frontier": json.loads(found.to_json()),
    }
    del about["frontier"]["plans"], about["frontier"]["sensitivity"]
    stem = results / f"frontier_{name}"
    found.plot(stem.with_suffix(".png"))
    for suffix, text in ((".json", json.dumps(about, indent=1)), (".md", page(found, about))):
        with replacing(stem.with_suffix(suffix), overwrite=True) as temporary:
            Path(temporary).write_text(text + "\n", encoding="utf-8")


def page(found: tensorlrf.Frontier, about: dict[str, Any]) -> str:
    """The result in Markdown."""
    on = about["machine"]
    rows = "\n".join(
        f"| {row['share']:g} | {row[about['metric']]:.4f} | {row['fit s']:.0f} s |"
        for row in about["fitted"]
    )
    return f"""# Frontier of {about["model"]}

device {on["device"]}, threads {on["threads"]}, torch {on["torch"]}, python {on["python"]}. \
{about["note"]} Bounds on its drop are at 95%. Plans are judged by cheap models, their layers cut \
along the directions of their outputs. The whole table took {about["seconds"]:.0f} s of CPU, of \
which the metric {about["seconds of the metric"]:.0f} s; other work ran beside, so that of \
latencies, all measured in turn, only how they compare is to be read.

![frontier](frontier_{about["model"]}.png)

{found.to_markdown()}
Some of these plans after a full fit, `apply` with the same batches:

| share | metric | fit |
| ---: | ---: | ---: |
{rows}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("models", nargs="+", choices=CASES, metavar="MODEL")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.models:
        measure(name, given.results)


if __name__ == "__main__":
    main()
