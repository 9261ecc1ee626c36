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
from PIL import Image
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
    steps    of the optimiser; None for a budget in seconds
    """

    dense: nn.Module
    fit: list[Any]
    budget: dict[str, Any]
    data: list[Any]
    holdout: float
    judge: Judge
    loss: str = "auto"
    groups: list[str] | None = None
    steps: int | None = None


def placed(trained: list[Any], held: list[Any]) -> tuple[list[Any], float]:
    """(batches, the share) of which `refine` holds out just the second ones: evenly spaced."""
    n, left = len(trained) + len(held), iter(trained)
    places = {round((k + 1) * n / len(held)) - 1: one for k, one in enumerate(held)}
    return [places[k] if k in places else next(left) for k in range(n)], len(held) / n


def minilm(keep: float, _: Path) -> Case:
    """The encoder with its mean over tokens. Every fifth of 300 documents is held out of both; it
    is fitted to the first 96 tokens of the others, and refined on all their text."""
    import minilm as example
    import texts

    about, tokenizer = subject("minilm"), example.load_tokenizer()
    dense = Pooled(about.load()).eval()
    judge, tokens = about.judge(dense.encoder), example.CALIBRATION_TOKENS
    documents = texts.background()
    held = example.batches(tokenizer, documents[4::5], 20, tokens)
    others = [text for k, text in enumerate(documents) if k % 5 != 4]
    parts = [" ".join(words) for text in others for words in _cut(text.split(), 64, 16)]
    data, share = placed(example.batches(tokenizer, parts, 8, tokens), held)
    budget = {"keep_params": keep, "skip": ["*embeddings*", "*pooler*"]}
    fit = example.batches(tokenizer, others, example.CALIBRATION_BATCH, tokens)
    return Case(
        dense, fit, budget, data, share, lambda m: judge(m.encoder), "cosine", steps=600
    )  # fmt: skip


def _cut(words: list[str], n: int, every: int) -> list[list[str]]:
    """Parts of n words, one begins at every so many; of those under half of that, none."""
    parts = [words[k : k + n] for k in range(0, len(words), every)]
    return [part for part in parts if len(part) > n // 2] or parts[:1]


OTHERS = ("brick", "cell", "clock_motion", "color", "grass", "gravel", "ihc", "page", "text")
"""Pictures of scikit-image that are in neither set of the examples: textures, cells, print."""


def efficientnet(keep: float, _: Path) -> Case:
    """The classifier. Every fifth of 15 pictures is held out of both; it is fitted to 16 crops of
    each of the others, and refined on 36 of each and of six pictures of another kind, blended.
    Three more of that kind are held out: three photographs alone agree on next to nothing."""
    import efficientnet as example
    from common import packaged
    from pictures import crops, picture_set

    about, folder = subject("efficientnet"), packaged("skimage", "scikit-image") / "data"
    dense = about.load()
    images = [picture.image for picture in picture_set("calibration")]
    others = [Image.open(folder / f"{name}.png").convert("RGB") for name in OTHERS]
    unseen = [(k, images[k]) for k in range(4, 15, 5)] + [(k, others[k]) for k in range(2, 9, 3)]
    held = [example.preprocess(crops(image, 16, k)) for k, image in unseen]
    own = [crops(image, 36, k) for k, image in enumerate(images) if k % 5 != 4]
    also = [crops(image, 36, 100 + k) for k, image in enumerate(others) if k % 3 != 2]
    fit = mixed([one[:16] for one in own])
    data, share = placed(blended(mixed(own + also)), held)
    groups = [
        next((f"picture {k}" for k, one in enumerate(held) if one is x), "others") for x in data
    ]
    budget = {"keep_params": keep, "skip": about.skip}
    return Case(dense, fit, budget, data, share, about.judge(dense), "kl", groups, steps=100)


def mixed(pictures: list[np.ndarray], size: int = 16) -> list[torch.Tensor]:
    """Batches of crops, each of many pictures."""
    import efficientnet as example

    crops = np.stack(pictures, 1).reshape(-1, *pictures[0].shape[1:])
    return [example.preprocess(crops[k : k + size]) for k in range(0, len(crops), size)]


def blended(batches: list[torch.Tensor]) -> list[torch.Tensor]:
    """Each picture with another one of its batch over it, in shares drawn anew (Zhang et al. 2018):
    of few pictures they make many inputs, and the given model has an answer to each (Beyer et al.
    2022)."""
    draws = torch.Generator().manual_seed(0)
    return [x.lerp(x.roll(1, 0), torch.rand(len(x), 1, 1, 1, generator=draws)) for x in batches]


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
    """The language model: fitted to 32 windows, two thirds of them news and one docstrings, refined
    on 58 and judged on 6 of the same kinds; tested on other news, and on Python's own pages of
    help, a text of another kind."""
    import smollm2 as example

    about, tokenizer = subject("smollm2_mixed"), example.load_tokenizer()
    windows = example.mixed_batches(tokenizer, 64)
    data, share = placed(windows[:58], windows[58:])
    news, pages = example.unseen_windows(tokenizer), help_pages(tokenizer, 8)

    def judge(model: nn.Module) -> dict[str, Any]:
        figures: dict[str, Any] = {}
        for name, tokens in (("news", news), ("help pages", pages)):
            value, span = example.perplexity(example.losses(model, tokens))
            figures |= {f"perplexity of {name}": value, f"{name} 95%": spoken(span)}
        return figures

    budget = {"keep_params": keep, "skip": about.skip}
    return Case(about.load(), about.calibration(), budget, data, share, judge)


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
