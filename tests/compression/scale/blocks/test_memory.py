"""The script that measures memory, on a model that takes no time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import blocks


@pytest.mark.filterwarnings("ignore::tensorlrf.errors.CalibrationWarning")  # few samples
def test_what_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 80}
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # those of all tests
    monkeypatch.setattr(blocks, "BATCHES", 2)
    monkeypatch.setattr(blocks, "SMALL", sizes)
    source = blocks.made(tmp_path / "in", sizes, 2)
    assert blocks.numbers(sizes) == 4 * 64 * 64 + 3 * 64 * 96 + 2 * 64
    found = blocks.apart(source, tmp_path / "out")
    assert found["apart"] < 1e-2 < found["lost"]  # bfloat16: a sum may round to another number
    parts = blocks.bound(sizes)
    assert parts["block"] == 2 * blocks.numbers(sizes)
    assert 0 < parts["sums"] < parts["fit"]
