"""The recogniser: its published size, what it reads, and its LSTMs on factors."""

from __future__ import annotations

import pytest
import recognizer
import torch
import words
from torch import nn

import tensorlrf
from tensorlrf.nn import FactoredLSTM


@pytest.fixture(scope="module")
def model() -> recognizer.Recognizer:
    return recognizer.load_recognizer()


def test_size_is_the_published_one(model: recognizer.Recognizer) -> None:
    assert sum(p.numel() for p in model.parameters()) == 3_781_345
    assert sum(isinstance(m, nn.LSTM) for m in model.modules()) == 2
    assert model.head.out_features == 97
    assert len(set(recognizer.CHARACTERS)) == 96
    assert not model.training


def test_columns_are_a_quarter_of_the_width(model: recognizer.Recognizer) -> None:
    with torch.inference_mode():
        logits = model(torch.zeros(2, 1, 64, 128))
    assert logits.shape == (2, 31, 97)
    assert recognizer.decode(logits) == ["", ""]  # nothing is written there


def test_repetitions_are_one_letter_unless_a_blank_parts_them() -> None:
    classes = [0, *(recognizer.CHARACTERS.index(c) + 1 for c in "bb"), 0]
    classes += [recognizer.CHARACTERS.index("b") + 1, 0]
    logits = torch.nn.functional.one_hot(torch.tensor([classes]), 97)
    assert recognizer.decode(logits) == ["bb"]


def test_lstms_become_factored_ones(model: recognizer.Recognizer) -> None:
    draws = torch.Generator().manual_seed(0)
    x = torch.rand(2, 1, 64, 64, generator=draws)
    small, _ = tensorlrf.compress(model, keep_params=0.5, skip=[], progress=False)
    assert all(isinstance(reader.rnn, FactoredLSTM) for reader in small.readers)
    with torch.inference_mode():
        assert small(x).shape == model(x).shape


@pytest.mark.slow  # reads the packages of requirements-examples.txt
def test_splits_share_no_word_and_pictures_repeat() -> None:
    splits = [set(words.vocabulary(name)) for name in ("calibration", "validation", "test")]
    assert not splits[0] & splits[1] | splits[0] & splits[2] | splits[1] & splits[2]
    assert len(splits[2]) >= 2000
    made, again = words.make_words("test", 5), words.make_words("test", 5)
    for one, other in zip(made, again, strict=True):
        assert one.text == other.text
        assert (one.pixels == other.pixels).all()
        assert one.pixels.shape == (words.HEIGHT, words.WIDTH)
    with pytest.raises(ValueError, match="'tset'"):
        words.make_words("tset", 1)
    with pytest.raises(ValueError, match="n must be 1 to"):
        words.make_words("test", 10**6)


@pytest.mark.slow  # likewise
def test_it_reads_words(model: recognizer.Recognizer) -> None:
    found = recognizer.right(model, words.make_words("validation", 60))
    assert sum(found) >= 57
