"""The classifier of `bench/questions.py`: MiniLM with a head, trained, compressed and judged."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import minilm
import numpy as np
import torch
from common import call
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tensorlrf
from bench.pooled import Pooled
from bench.question_texts import PARTS, Split

TOKENS = 32
BATCH = 16
EPOCHS = 4
RATES = (1e-4, 4e-4)
"""Of AdamW, of which the one with the lower loss on the validation set is kept in each training."""

HEAD_RATE = 5e-3
SKIP = ("*embeddings*", "*pooler*")

ATTENTION = {"*attention*": "svd", "*": None}
FEED_FORWARD = {"*attention*": None, "*": "svd"}


class Classifier(nn.Module):
    """(texts, parts) logits."""

    def __init__(self, pooled: nn.Module) -> None:
        super().__init__()
        self.pooled = pooled
        self.head = nn.Linear(384, len(PARTS))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, **batch: Tensor) -> Tensor:
        logits: Tensor = self.head(self.pooled(**batch))
        return logits


@dataclass(frozen=True)
class Examples:
    """Texts in batches, in order of length.

    batches  {input_ids, token_type_ids, attention_mask} each
    labels   (n,)
    files    (n,), of which file each text is
    """

    batches: list[dict[str, Tensor]]
    labels: Tensor
    files: np.ndarray

    @classmethod
    def of(cls, tokenizer: Any, split: Split) -> Examples:
        lengths = [len(ids) for ids in tokenizer(split.texts)["input_ids"]]
        order = [int(k) for k in np.argsort(lengths, kind="stable")]
        batches = minilm.batches(tokenizer, [split.texts[k] for k in order], BATCH, TOKENS)
        labels = torch.tensor([split.labels[k] for k in order])
        return cls(batches, labels, np.array([split.files[k] for k in order]))


def refilled(batches: Sequence[dict[str, Tensor]], stream: Tensor) -> list[dict[str, Tensor]]:
    """The same batches with the words of another text, as many in each: all ids but the first and
    last of a text come from `stream`, which begins anew where it ends."""
    made, at = [], 0
    for batch in batches:
        inner = batch["attention_mask"].bool()
        ends = batch["attention_mask"].sum(1) - 1
        inner[:, 0] = False
        inner[torch.arange(len(inner)), ends] = False
        ids = batch["input_ids"].clone()
        n = int(inner.sum())
        ids[inner] = stream[torch.arange(at, at + n) % len(stream)]
        at += n
        made.append({**batch, "input_ids": ids})
    return made


@dataclass(frozen=True)
class Training:
    """What a training took.

    seconds  of CPU, for the rate that was kept
    rate     of RATES
    loss     on the validation set, in nats
    """

    seconds: float
    rate: float
    loss: float


def finetuned(
    model: Classifier, train: Examples, valid: Examples, epochs: int
) -> tuple[Classifier, Training]:
    """A copy trained on the labels; dense weights and factors alike, embeddings apart."""
    found = []
    for rate in RATES:
        start = time.process_time()
        trained = _trained(copy.deepcopy(model), train, epochs, rate)
        seconds = time.process_time() - start
        loss = float(np.mean(scores(trained, valid)["nats"]))
        found.append((trained, Training(seconds, rate, loss)))
    return min(found, key=lambda one: one[1].loss)


def _trained(model: Classifier, train: Examples, epochs: int, rate: float) -> Classifier:
    """In place, in eval mode: without dropout it repeats."""
    model.eval()
    body = [p for name, p in model.pooled.named_parameters() if "embeddings" not in name]
    frozen = [p for name, p in model.pooled.named_parameters() if "embeddings" in name]
    groups = [{"params": body, "lr": rate}, {"params": model.head.parameters(), "lr": HEAD_RATE}]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.01)
    steps = epochs * len(train.batches)
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda k: min((k + 1) / warm, (steps - k) / (steps - warm + 1))
    )
    labels = train.labels.split(BATCH)
    draws = np.random.default_rng(0)
    for p in frozen:
        p.requires_grad_(False)
    for _ in range(epochs):
        for k in draws.permutation(len(train.batches)):
            loss = nn.functional.cross_entropy(model(**train.batches[k]), labels[k])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    for p in frozen:
        p.requires_grad_(True)
    return model


def compressed(
    model: nn.Module, keep: float, batches: Sequence[Any], loss: str, method: Any = "svd"
) -> tuple[nn.Module, int, float]:
    """(the smaller model, parameters that are gone, CPU seconds)."""
    skip = [*SKIP, "head"] if isinstance(model, Classifier) else list(SKIP)
    start = time.process_time()
    small, report = tensorlrf.compress(
        model, keep_params=keep, method=method, skip=skip, calibration=list(batches),
        allocation="fisher", metric="outputs", loss=loss, progress=False,
    )  # fmt: skip
    gone = report.model.params_before - report.model.params_after
    return small, gone, time.process_time() - start


def smaller_embedding(model: Classifier, keep: float) -> tuple[Classifier, int]:
    """(a copy whose word embeddings are of low rank, parameters that are gone)."""
    small = copy.deepcopy(model)
    around = small.pooled.encoder.embeddings
    words = around.word_embeddings
    rank = int(keep * words.weight.numel() / sum(words.weight.shape))
    around.word_embeddings = tensorlrf.nn.factorize(words, "svd", rank)
    return small, words.weight.numel() - rank * sum(words.weight.shape)


def scores(model: nn.Module, examples: Examples) -> dict[str, list[float]]:
    """Of each text whether its likeliest part is right, and the log loss in nats."""
    logits = torch.cat([call(model, batch) for batch in examples.batches]).double()
    nats = nn.functional.cross_entropy(logits, examples.labels, reduction="none")
    return {
        "right": (logits.argmax(1) == examples.labels).double().tolist(),
        "nats": nats.tolist(),
    }


def dense(epochs: int, train: Examples, valid: Examples, work: Path) -> tuple[Classifier, Training]:
    """MiniLM trained for so many epochs, from the disk where it is there."""
    path = work / f"finetuned-{epochs}.safetensors"
    model = Classifier(Pooled(minilm.load_minilm())).eval()
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        trained, told = finetuned(model, train, valid, epochs)
        path.with_suffix(".json").write_text(json.dumps(vars(told)))
        save_file({name: p.contiguous() for name, p in trained.state_dict().items()}, path)
    model.load_state_dict(load_file(path))
    return model, Training(**json.loads(path.with_suffix(".json").read_text()))
