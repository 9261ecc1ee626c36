"""What `bench/refine.py` refines: models of the examples, what they train on and are judged by.

The folder of the examples must be found by then: they are no package.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bench.pooled import Pooled
from bench.subjects import Judge, spoken, subject


@dataclass(frozen=True)
class Case:
    """A model to refine.

    dense    as it is compressed and judged
    fit      batches for `compress`
    budget   its other arguments
    data     batches for `refine`, of which whole ones are held out
    holdout  share of these
    judge    figures of a model on test inputs
    loss     of `refine`
    groups   of each batch of `data`, as `refine` takes them
    """

    dense: nn.Module
    fit: list[Any]
    budget: dict[str, Any]
    data: list[Any]
    holdout: float
    judge: Judge
    loss: str = "auto"
    groups: list[str] | None = None


def placed(trained: list[Any], held: list[Any]) -> tuple[list[Any], float]:
    """(batches, the share) of which `refine` holds out just the second ones: evenly spaced."""
    n, left = len(trained) + len(held), iter(trained)
    places = {round((k + 1) * n / len(held)) - 1: one for k, one in enumerate(held)}
    return [places[k] if k in places else next(left) for k in range(n)], len(held) / n


def minilm(keep: float, _: Path) -> Case:
    """The encoder with its mean over tokens. Every fifth of 300 documents is held out of both; it
    is fitted to the first 96 tokens of a third of the others, and refined on all their text."""
    import minilm as example
    import texts

    about, tokenizer = subject("minilm"), example.load_tokenizer()
    dense = Pooled(about.load()).eval()
    judge, tokens = about.judge(dense.encoder), example.CALIBRATION_TOKENS
    documents = texts.background()
    held = example.batches(tokenizer, documents[4::5], 20, tokens)
    others = [text for k, text in enumerate(documents) if k % 5 != 4]
    parts = [" ".join(words) for text in others for words in _cut(text.split(), 64)]
    data, share = placed(example.batches(tokenizer, parts, 16, tokens), held)
    budget = {
        "keep_params": keep,
        "skip": ["*embeddings*", "*pooler*"],
        "allocation": "fisher",
        "metric": "loss",
        "target": "independent",
    }
    fit = example.batches(tokenizer, others, 16, tokens)[1::3]
    return Case(dense, fit, budget, data, share, lambda m: judge(m.encoder), "cosine")


def _cut(words: list[str], n: int) -> list[list[str]]:
    """Parts of n words; of a last one under half of that, none."""
    parts = [words[k : k + n] for k in range(0, len(words), n)]
    return [part for part in parts if len(part) > n // 2] or parts[:1]


def efficientnet(keep: float, _: Path) -> Case:
    """The classifier. Every fifth of 15 pictures is held out of both; a batch mixes crops of the
    others. It is refined on more crops of them than it is fitted to."""
    import efficientnet as example
    from pictures import crops, picture_set

    about = subject("efficientnet")
    dense = about.load()
    every = [crops(p.image, 32, seed) for seed, p in enumerate(picture_set("calibration"))]
    held = [example.preprocess(own[:16]) for own in every[4::5]]
    others = np.stack([own for k, own in enumerate(every) if k % 5 != 4])
    mixed = others.swapaxes(0, 1).reshape(-1, *others.shape[2:])
    batches = [example.preprocess(mixed[k : k + 16]) for k in range(0, len(mixed), 16)]
    data, share = placed(batches, held)
    groups = [
        next((f"picture {k}" for k, own in enumerate(held) if own is one), "others") for one in data
    ]
    budget = {
        "keep_params": keep,
        "skip": about.skip,
        "allocation": "fisher",
        "target": "independent",
    }
    fit = batches[: len(batches) // 2]
    return Case(dense, fit, budget, data, share, about.judge(dense), "kl", groups)


def own_cnn(keep: float, work: Path) -> Case:
    """The CNN of digits as CP, on its training pictures. It is trained once."""
    import own_cnn as example

    about, trained = subject("own_cnn"), work / "own_cnn.safetensors"
    if not trained.exists():
        work.mkdir(parents=True, exist_ok=True)
        save_file(about.load().state_dict(), trained)
    dense, (x, _) = example.Net().eval(), example.digits("train", 2560)
    dense.load_state_dict(load_file(trained))
    fit, held = list(x[:512].split(64)), list(x[2048:].split(64))
    data, share = placed(list(x[:2048].split(64)), held)
    budget = {"keep_params": keep, "method": "cp"}
    return Case(dense, fit, budget, data, share, about.judge(dense))


def smollm2(keep: float, _: Path) -> Case:
    """The language model: fitted to 32 windows of news, refined on these and 26 more, 6 more held
    out; judged on other news, and on Python's own pages of help, a text of another kind."""
    import smollm2 as example

    about, tokenizer = subject("smollm2"), example.load_tokenizer()
    windows = example.calibration_batches(tokenizer, 64)
    data, share = placed(windows[:58], windows[58:])
    news, pages = example.unseen_windows(tokenizer), help_pages(tokenizer, 8)

    def judge(model: nn.Module) -> dict[str, Any]:
        figures: dict[str, Any] = {}
        for name, tokens in (("news", news), ("help pages", pages)):
            value, span = example.perplexity(example.losses(model, tokens))
            figures |= {f"perplexity of {name}": value, f"{name} 95%": spoken(span)}
        return figures

    budget = {"keep_params": keep, "skip": about.skip, "allocation": "fisher"}
    return Case(about.load(), windows[:32], budget, data, share, judge)


def help_pages(tokenizer: Any, n: int) -> torch.Tensor:
    """(n, 512): windows of what `help()` of Python prints about its topics, evenly spaced."""
    from pydoc_data.topics import topics

    import smollm2 as example

    tokens = tokenizer("\n".join(topics.values()), return_tensors="pt")["input_ids"][0]
    every = len(tokens) // example.WINDOW
    whole = tokens[: every * example.WINDOW].reshape(every, example.WINDOW)
    return whole[[math.floor(k * every / n) for k in range(n)]]


CASES: dict[str, Callable[[float, Path], Case]] = {
    "minilm": minilm,
    "efficientnet": efficientnet,
    "own_cnn": own_cnn,
    "smollm2": smollm2,
}
"""Name -> the case at a share of the parameters to keep; the folder may hold what was made once."""
