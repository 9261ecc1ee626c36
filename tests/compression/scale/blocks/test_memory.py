"""The script that measures memory, on a model that takes no time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tensorlrf
from bench import blocks
from tensorlrf.compression.scale.blocks import _tables, _walk
from tests.compression.scale.blocks.networks import ids, net, on_meta, saved


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


def test_no_fit_has_the_table_of_words_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the first block either, whose inputs come of it."""
    seen: list[bool] = []

    class Seen(_walk.WorkingCopy):
        def factor_all(self, *told: Any) -> None:
            rows = self.model.get_submodule("embed").weight
            assert isinstance(rows, torch.Tensor)
            seen.append(rows.untyped_storage().nbytes() == rows.element_size())  # NaN, once
            super().factor_all(*told)

    monkeypatch.setattr(_tables, "LARGE", 0)
    monkeypatch.setattr(_walk, "WorkingCopy", Seen)
    model = net()
    source = saved(model, tmp_path / "a.safetensors")
    tensorlrf.compress_checkpoint(
        source, tmp_path / "b.safetensors", keep_params=0.5, model=on_meta(model),
        calibration=ids(), skip=["last"], progress=False,
    )  # fmt: skip
    assert seen == [True] * 3
