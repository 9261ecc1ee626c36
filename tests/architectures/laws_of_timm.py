"""The laws on architectures of timm: run by `test_timm.py` in processes of their own, whose name
no collection of tests goes by."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.architectures import GOAL, reached
from tensorlrf import compress, fold_batch_norms, load, save
from tests.architectures.laws import (
    check_compress,
    check_compress_without_data,
    check_near,
    check_same,
    outputs,
)
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


def test_batch_norms_are_folded(architecture: OfTimm, tmp_path: Path) -> None:
    """Nearly all of timm's run an activation, which stays."""
    model, (batch,) = architecture.model(), architecture.batches(1)
    folded, left = fold_batch_norms(model, batch)
    assert not any("may do more" in why for why in left.values()), left
    check_near(outputs(folded, batch), outputs(model, batch))
    small, report = compress(
        model, keep_params=0.6, fold_batch_norms=True, example=batch, progress=False
    )
    assert report.folded is not None
    assert all(name in left for name in (told.partition(":")[0] for told in report.folded.left))
    save(small, tmp_path / "small.safetensors")
    check_same(outputs(load(tmp_path / "small.safetensors", model), batch), outputs(small, batch))
