"""report.plot: a picture, or nothing at all."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from torch import nn

from tensorlrf import SVD, compress
from tensorlrf.compression import Report
from tensorlrf.errors import ArgumentError, FileError, UnsupportedError
from tests.compression.networks import set_weights
from tests.draws import seeded32

SIGNS = {"png": b"\x89PNG\r\n\x1a\n", "svg": b"<?xml", "pdf": b"%PDF"}


def report(*, calibrated: bool = True) -> Report:
    model = set_weights(nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3)))
    data = [seeded32(20, 8, 9, 9, seed=k) for k in range(3)] if calibrated else None
    return compress(model, keep_params=0.5, calibration=data)[1]


@pytest.mark.parametrize("suffix", SIGNS)
@pytest.mark.parametrize("calibrated", [False, True])
def test_a_picture_of_the_kind_that_the_suffix_says(
    tmp_path: Path, suffix: str, calibrated: bool
) -> None:
    path = tmp_path / f"report.{suffix}"
    path.write_text("an older one")
    before = "matplotlib.pyplot" in sys.modules
    report(calibrated=calibrated).plot(path)
    assert path.read_bytes().startswith(SIGNS[suffix])
    assert path.stat().st_size > 5000
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    # pyplot, which picks a display and keeps figures, takes no part in it.
    assert ("matplotlib.pyplot" in sys.modules) == before


@pytest.mark.parametrize("name", ["report", "report.qqq", "report."])
def test_a_bad_suffix_leaves_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArgumentError, match="path="):
        report().plot(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"path=.*folder .* is missing"):
        report().plot(tmp_path / "nowhere" / "report.png")


def test_a_report_without_factored_layers(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(16, 16))
    nn.init.orthogonal_(model[0].weight)
    _, told = compress(model, method=SVD(error=0.01))
    assert not told.layers[0].factored
    told.plot(tmp_path / "none.png")
    assert (tmp_path / "none.png").read_bytes().startswith(SIGNS["png"])


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'tensorlrf\[plot\]'"):
        report().plot(tmp_path / "report.png")
