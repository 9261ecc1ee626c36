"""The laws on architectures of timm: run by `test_timm.py` in processes of their own, whose name
no collection of tests goes by."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.architectures import GOAL, reached
from tests.architectures.laws import check_compress, check_compress_without_data
from tests.architectures.of_timm import ARCHITECTURES, OfTimm

# A few rows per batch, so that a test takes a second.
pytestmark = pytest.mark.filterwarnings("ignore:calibration is thin")


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> OfTimm:
    return ARCHITECTURES[request.param]


def test_compress(architecture: OfTimm, tmp_path: Path) -> None:
    check_compress(architecture, tmp_path)


def test_compress_without_data(architecture: OfTimm) -> None:
    check_compress_without_data(architecture)


def test_nearly_all_of_the_large_one_is_reached(architecture: OfTimm) -> None:
    assert reached(architecture.at_full_size()).whole >= GOAL
