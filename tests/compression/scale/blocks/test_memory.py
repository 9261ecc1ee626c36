"""The script that measures memory, on a model that takes no time."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

import tensorlrf
from bench import blocks
from tensorlrf.compression.calibration.batches import call, list_batches
from tensorlrf.compression.scale.blocks import _tables, _walk
from tensorlrf.compression.scale.blocks._course import Parted, numbered
from tensorlrf.compression.scale.blocks._states import States
from tensorlrf.compression.scale.blocks._tables import Tables
from tensorlrf.nn.copies import replica
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


def test_copies_that_passes_ran_through_are_gone_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not when somebody collects: each has all modules of the model, hollow ones too."""
    states, model = States(tmp_path / "states", 1 << 20), net()
    names = [f"blocks.{k}" for k in range(3)]
    parted = Parted(model, [names], states, "given")
    monkeypatch.setattr(_tables, "LARGE", 0)
    Tables([parted], {}).know()
    parted.enter(0)
    own = replica(parted.model)
    batch = numbered(list_batches(ids(1), own)[0], torch.device("cpu"))
    gc.disable()
    try:
        with torch.no_grad():
            output = call(own, batch)
        gone = weakref.ref(own)
        del own
        assert gone() is None
    finally:
        gc.enable()
    parted.leave(0, reached=True)
    same = net()
    wanted = same.blocks[0](same.entry(same.embed(ids(1)[0])))
    torch.testing.assert_close(output, wanted)
