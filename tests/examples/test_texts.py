"""The Lee corpora, and the correlation of similarities with human judgement."""

from __future__ import annotations

import numpy as np
import pytest
import texts

pytestmark = pytest.mark.slow  # reads the packages of requirements-examples.txt


def test_the_corpora_have_their_sizes_and_share_nothing() -> None:
    background, documents = texts.background(), texts.documents()
    assert (len(background), len(documents)) == (300, 50)
    assert sum(len(text.split()) for text in background) > 50_000
    assert not set(background) & set(documents)
    assert any("£" in text for text in documents)  # read as Latin-1


def test_judgements_are_symmetric_shares() -> None:
    judged = texts.human_similarities()
    assert judged.shape == (50, 50)
    assert np.array_equal(judged, judged.T)
    assert (np.diag(judged) == 1).all()
    assert judged.min() >= 0
    assert judged.max() <= 1


def test_similarities_that_agree_correlate_perfectly() -> None:
    rows = np.random.default_rng(0).normal(size=(12, 5))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    judged = unit @ unit.T
    lengths = np.linspace(0.1, 10, 12)[:, None]  # lengths do not matter
    assert texts.pearson(rows * lengths, judged) == pytest.approx(1, abs=1e-12)
    assert texts.pearson(rows, 1 - judged) == pytest.approx(-1, abs=1e-12)
    low, high = texts.pearson_interval(rows, judged)
    assert low == pytest.approx(1, abs=1e-12) == high


def test_the_interval_holds_the_figure() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(30, 8))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    noise = rng.normal(0, 0.3, size=(30, 30))
    judged = unit @ unit.T + noise + noise.T
    low, high = texts.pearson_interval(rows, judged)
    assert low < texts.pearson(rows, judged) < high
