"""Models of the examples judged example by example, so that two can be compared in pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from common import call, interval
from torch import Tensor, nn

Scores = np.ndarray
"""(examples, k): what a model did on each document, picture, scene or block of tokens; and what
else figures need, as the text that a block is of, or a document's embedding."""

Told = tuple[float, tuple[float, float]]
"""A figure, and its 95% interval over examples."""


Scorer = Callable[[nn.Module], Scores]


@dataclass(frozen=True)
class Figure:
    """What tells how good a compressed model is.

    name     in the table
    of       the figure of the scores of some examples
    loss     what errors of the outputs cost, as `tensorlrf.sensitivity` takes it
    readout  and what counts of them
    part     the examples that it is a figure of, where these are not all
    also     other figures of the same examples
    columns  of the scores that two models are compared by, which are kept; None for all
    """

    name: str
    of: Callable[[Scores], float]
    loss: str = "auto"
    readout: Callable[[Any], Tensor] | None = None
    part: Callable[[Scores], Scores] = np.asarray
    also: Mapping[str, Callable[[Scores], Told]] = field(default_factory=dict)
    columns: int | None = None

    def told(self, scores: Scores) -> Told:
        """The figure of a model."""
        own = self.part(scores)
        return self.of(own), interval(lambda k: self.of(own[k]), len(own))

    def beside(self, scores: Scores, others: Scores) -> Told:
        """How much higher the figure is than with the others, over examples that are drawn for both
        alike."""
        own, other = self.part(scores), self.part(others)
        higher = self.of(own) - self.of(other)
        return higher, interval(lambda k: self.of(own[k]) - self.of(other[k]), len(own))


def _mean(scores: Scores) -> float:
    return float(scores.mean())


def _first(scores: Scores) -> float:
    return float(scores[:, 0].mean())


def _perplexity(nats: Scores) -> float:
    return float(np.exp(nats[:, 0].mean()))


def _pearson(scores: Scores) -> Told:
    import texts

    judged, embeddings = texts.human_similarities(), scores[:, 1:]
    return texts.pearson(embeddings, judged), texts.pearson_interval(embeddings, judged)


HEAD, NEWS, TOPICS = range(3)
"""Texts by number: the first windows of lee.cor, the others, and topics of Python's manual."""


def _text(*numbers: int) -> Callable[[Scores], Scores]:
    return lambda scores: scores[np.isin(scores[:, 1], numbers)]


def _f1(counts: Scores) -> float:
    matched, found, true = counts.sum(0)
    return float(2 * matched / max(1.0, found + true))


# Calibration reads the first 96 tokens of texts, of which nearly all have as many: no padding.
FIGURES = {
    "own_cnn": Figure("right", _mean),
    "minilm": Figure(
        "cosine to dense",
        _first,
        "cosine",
        lambda o: o.last_hidden_state.mean(1),
        also={"Lee-50 Pearson": _pearson},
        columns=1,
    ),
    "smollm2": Figure(
        "perplexity",
        _perplexity,
        part=_text(HEAD),
        also={
            "all of lee.cor": Figure("", _perplexity, part=_text(HEAD, NEWS)).told,
            "topics of the manual": Figure("", _perplexity, part=_text(TOPICS)).told,
        },
        columns=2,
    ),
    "efficientnet": Figure("agreement", _mean),
    "detector": Figure("F1", _f1),
}
FIGURES["smollm2_mixed"] = FIGURES["smollm2"]


def scorer(name: str, dense: nn.Module) -> Scorer:
    """What tells how a model, named as in FIGURES, does on each example, beside the dense one."""
    return _SCORERS[name](dense)


def _minilm(dense: nn.Module) -> Scorer:
    import minilm
    import texts

    tokenizer = minilm.load_tokenizer()
    wanted = minilm.embed(dense, tokenizer, texts.documents()).double()

    def scores(model: nn.Module) -> Scores:
        got = minilm.embed(model, tokenizer, texts.documents()).double()
        cosines = nn.functional.cosine_similarity(wanted, got)
        return torch.cat([cosines[:, None], got], 1).numpy()

    return scores


def _smollm2(_: nn.Module) -> Scorer:
    import smollm2

    tokenizer = smollm2.load_tokenizer()
    news, topics = smollm2.unseen_windows(tokenizer, None), smollm2.topics_windows(tokenizer)
    text = torch.cat([torch.full((len(news),), NEWS), torch.full((len(topics),), TOPICS)])
    text[: smollm2.N_TEST] = HEAD
    tokens = torch.cat([news, topics])

    def scores(model: nn.Module) -> Scores:
        nats = smollm2.losses(model, tokens).reshape(len(tokens), -1, smollm2.BLOCK).mean(2)
        return torch.stack([nats, text[:, None].expand_as(nats)], 2).flatten(0, 1).numpy()

    return scores


def _efficientnet(dense: nn.Module) -> Scorer:
    import efficientnet

    batches = efficientnet.unseen_crops()
    wanted = efficientnet.classes(dense, batches)

    def scores(model: nn.Module) -> Scores:
        return (efficientnet.classes(model, batches) == wanted).astype(float)

    return scores


def _own_cnn(_: nn.Module) -> Scorer:
    import own_cnn

    unseen, truth = own_cnn.digits("test", 1000)

    def scores(model: nn.Module) -> Scores:
        found = torch.cat([call(model, part).argmax(1) for part in unseen.split(256)])
        return (found == truth).float()[:, None].numpy()

    return scores


def _detector(_: nn.Module) -> Scorer:
    import detection
    from scenes import make_scenes

    scenes = make_scenes("validation", 20)

    def scores(model: nn.Module) -> Scores:
        counts = detection.evaluate(model, scenes)
        return np.array([[c.matched, c.found, c.true] for c in counts], float)

    return scores


_SCORERS: dict[str, Callable[[nn.Module], Scorer]] = {
    "own_cnn": _own_cnn,
    "minilm": _minilm,
    "smollm2": _smollm2,
    "smollm2_mixed": _smollm2,
    "efficientnet": _efficientnet,
    "detector": _detector,
}
