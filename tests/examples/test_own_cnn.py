"""The example of docs/measured.md: its data repeat, it learns, and the script runs to its end."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import own_cnn
import pytest
import torch


def test_digits_repeat_and_splits_share_no_font() -> None:
    x, y = own_cnn.digits("train", 20)
    again, labels = own_cnn.digits("train", 20)
    assert torch.equal(x, again)
    assert torch.equal(y, labels)
    assert x.shape == (20, 1, 32, 32)
    assert x.dtype == torch.float32
    assert not torch.equal(x, own_cnn.digits("train", 20, seed=1)[0])
    assert not set(own_cnn.FONTS["train"]) & set(own_cnn.FONTS["test"])
    with pytest.raises(ValueError, match=r"train, test.*'tset'"):
        own_cnn.digits("tset", 1)


def test_training_repeats_and_leaves_the_global_generator_alone() -> None:
    x, y = own_cnn.digits("train", 64)
    before = torch.get_rng_state()
    net = own_cnn.train(x, y, epochs=1)
    assert torch.equal(torch.get_rng_state(), before)
    again = own_cnn.train(x, y, epochs=1)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    assert not net.training


@pytest.mark.slow  # as `make examples` runs it, on fewer pictures
def test_the_script_runs_to_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_cnn, "train", partial(own_cnn.train, epochs=1))
    monkeypatch.setattr(own_cnn, "latency", partial(own_cnn.latency, seconds=0.1))
    file = tmp_path / "small.safetensors"
    own_cnn.main(["--pictures", "512", "--keep", ".5", "--output", str(file)])
    said = capsys.readouterr().out
    assert "compressed: " in said
    assert file.stat().st_size > 0
