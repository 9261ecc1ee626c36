"""Models of the examples judged example by example, so that two can be compared in pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common import call, interval
from torch import Tensor, nn

Scores = np.ndarray
"""(examples, k): what a model did on each document, picture, scene or block of tokens."""


Scorer = Callable[[nn.Module], Scores]


@dataclass(frozen=True)
class Figure:
    """What tells how good a compressed model is.

    name     in the table
    of       the figure of the scores of some examples
    loss     what errors of the outputs cost, as `tensorlrf.sensitivity` takes it
    readout  and what counts of them
    """

    name: str
    of: Callable[[Scores], float]
    loss: str = "auto"
    readout: Callable[[Any], Tensor] | None = None

    def told(self, scores: Scores) -> tuple[float, tuple[float, float]]:
        """(figure, its 95% interval over examples)."""
        return self.of(scores), interval(lambda k: self.of(scores[k]), len(scores))

    def beside(self, scores: Scores, others: Scores) -> tuple[float, tuple[float, float]]:
        """(how much higher the figure is than with the others, its 95% interval over examples that
        are drawn for both alike)."""
        higher = self.of(scores) - self.of(others)
        return higher, interval(lambda k: self.of(scores[k]) - self.of(others[k]), len(scores))


def _mean(scores: Scores) -> float:
    return float(scores.mean())


def _perplexity(nats: Scores) -> float:
    return float(np.exp(nats.mean()))


def _f1(counts: Scores) -> float:
    matched, found, true = counts.sum(0)
    return float(2 * matched / max(1.0, found + true))


# Calibration reads the first 96 tokens of texts, of which nearly all have as many: no padding.
FIGURES = {
    "own_cnn": Figure("right", _mean),
    "minilm": Figure("cosine to dense", _mean, "cosine", lambda o: o.last_hidden_state.mean(1)),
    "smollm2": Figure("perplexity", _perplexity),
    "efficientnet": Figure("agreement", _mean),
    "detector": Figure("F1", _f1),
}


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
        return nn.functional.cosine_similarity(wanted, got)[:, None].numpy()

    return scores


def _smollm2(_: nn.Module) -> Scorer:
    import smollm2

    tokens = smollm2.unseen_windows(smollm2.load_tokenizer())

    def scores(model: nn.Module) -> Scores:
        return smollm2.losses(model, tokens).reshape(-1, smollm2.BLOCK).mean(1)[:, None].numpy()

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
    "efficientnet": _efficientnet,
    "detector": _detector,
}
