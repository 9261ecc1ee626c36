"""The bench of moments, small: forms of one layer, and one calibration."""

from __future__ import annotations

import pytest

from bench import moments as bench


def test_an_image_loses_next_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "BATCH", 256)
    found = {word: bench.wide(word, 16, 128, 1024, 256) for word in bench.forms(16, 128)}
    assert list(found) == ["full", "image 16", "image 8", "sketch 8"]
    assert found["image 16"]["error"] <= 1.02 * found["full"]["error"]
    assert all(one["gather s"] >= 0 and one["fit"] > 0 for one in found.values())


def test_a_calibration_has_a_peak() -> None:
    assert bench.calibrated("moments", 2, 16, 1)["peak"] >= 0
