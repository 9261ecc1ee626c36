"""Thirty-one architectures of transformers keep the laws; three of them by default."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.architectures.inputs import Architecture
from tests.architectures.laws import check_compress, check_compress_without_data
from tests.architectures.listed import ARCHITECTURES

FAST = ("OPT", "ViT", "RoBERTa")
"""A decoder, a picture's model and an encoder."""

pytestmark = [
    # A few rows per batch, so that a test takes a second.
    pytest.mark.filterwarnings("ignore:calibration is thin"),
    # Of transformers: a router sends an expert nothing; what torch.compile makes of its caches.
    pytest.mark.filterwarnings("ignore:calibration does not reach"),
    pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`"),
]

EACH = [
    pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in ARCHITECTURES
]


@pytest.fixture(params=EACH)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return ARCHITECTURES[request.param]


def test_compress(architecture: Architecture, tmp_path: Path) -> None:
    check_compress(architecture, tmp_path)


def test_compress_without_data(architecture: Architecture) -> None:
    check_compress_without_data(architecture)
