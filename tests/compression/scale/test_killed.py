"""Runs that are killed between the last layer and the end."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import tensorlrf
from tensorlrf.compression.scale import _assembled, _checkpoint
from tests.files.kills import calls_of, killed_at, quick_disk

__all__ = ["quick_disk"]


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


@pytest.mark.usefixtures("quick_disk")
@pytest.mark.parametrize("name", ["small", "small.safetensors"])
def test_a_kill_at_any_of_the_last_calls(name: str, tmp_path: Path) -> None:
    """The output comes to its place, then the folder of the run goes: in between nothing is lost,
    and the same call sees that all is done."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    folder = tmp_path / "f"

    def begin() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        save_file(model.state_dict(), folder / "a.safetensors")

    def act() -> None:
        tensorlrf.compress_checkpoint(
            folder / "a.safetensors", folder / name, keep_params=0.5, threads=1, progress=False
        )

    begin()
    calls = calls_of(act)
    for n in range(calls - 16, calls):
        begin()
        assert killed_at(act, n)
        act()
        assert set(os.listdir(folder)) == {"a.safetensors", name}
        if name == "small":
            assert not [one for one in os.listdir(folder / name) if one.startswith(".")]
        tensorlrf.load(folder / name, model)
