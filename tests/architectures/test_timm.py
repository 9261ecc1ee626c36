"""Architectures of timm keep the laws of those of transformers, each in a process of its own: the
torchvision that timm imports must not be found by transformers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.architectures.of_timm import ARCHITECTURES
from tests.processes import python

FILE = Path(__file__).with_name("laws_of_timm.py")
LAWS = (
    "test_compress",
    "test_compress_without_data",
    "test_batch_norms_are_folded",
    "test_nearly_all_of_the_large_one_is_reached",
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_laws(name: str) -> None:
    each = [f"{FILE}::{law}[{name}]" for law in LAWS]
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", *each)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert f"{len(LAWS)} passed" in done.stdout
