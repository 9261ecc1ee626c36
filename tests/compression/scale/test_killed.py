"""Runs that are killed between the last layer and the end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import tensorlrf
from tensorlrf.compression.scale import _assembled, _checkpoint


@pytest.mark.parametrize("where", [_assembled, _checkpoint])
@pytest.mark.parametrize("name", ["small", "small.safetensors"])
def test_all_layers_are_done_and_nothing_is_in_its_place(
    where: object, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    call = {"keep_params": 0.5, "threads": 1, "progress": False}

    def fails(*_: object, **__: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(where, "write_pieces" if where is _assembled else "_put_in_place", fails)
        with pytest.raises(MemoryError):
            tensorlrf.compress_checkpoint(tmp_path / "a.safetensors", tmp_path / name, **call)
    report = tensorlrf.compress_checkpoint(tmp_path / "a.safetensors", tmp_path / name, **call)
    assert report.resumed == 2
    small = tensorlrf.load(tmp_path / name, model)
    assert small[0].factors.rank == 2
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", name}
