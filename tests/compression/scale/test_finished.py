"""A run that has ended is known by its output: the same call sees that, and any other does not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import tensorlrf
from tensorlrf.errors import FileError
from tests.compression.scale.test_checkpoint import contents, net, sharded


def _stamps(path: Path) -> dict[str, int]:
    files = [path] if path.is_file() else list(path.iterdir())
    return {file.name: os.stat(file).st_mtime_ns for file in files}


@pytest.mark.parametrize("name", ["out", "out.safetensors"])
def test_the_same_call_again_writes_nothing(tmp_path: Path, name: str) -> None:
    source, out = sharded(net(), tmp_path / "in"), tmp_path / name
    first = tensorlrf.compress_checkpoint(source, out, keep_params=0.5)
    before, stamps = contents(out), _stamps(out)
    for more in ({}, {"overwrite": True}, {"threads": None}):
        again = tensorlrf.compress_checkpoint(source, out, keep_params=0.5, **more)
        assert again.already
        assert "there already" in str(again)
        assert again.stays == first.stays
        assert (again.tensors, again.bytes_after) == (first.tensors, first.bytes_after)
        assert [(r.name, r.rank, r.weight_error) for r in again.layers] == [
            (r.name, r.rank, r.weight_error) for r in first.layers
        ]
    assert contents(out) == before
    assert _stamps(out) == stamps
    assert len(list(tmp_path.iterdir())) == 2


def test_another_call_is_told_that_it_exists(tmp_path: Path) -> None:
    source, out = sharded(net(), tmp_path / "in"), tmp_path / "out"
    call: dict[str, Any] = {"keep_params": 0.5, "threads": 1}
    tensorlrf.compress_checkpoint(source, out, **call)
    before = contents(out)
    for more in ({"keep_params": 0.4}, {"threads": 2}, {"shard_bytes": 999}, {"random_state": 1}):
        with pytest.raises(FileError, match="exists, and is not what this call makes"):
            tensorlrf.compress_checkpoint(source, out, **{**call, **more})
    assert contents(out) == before
    assert tensorlrf.compress_checkpoint(source, out, **call).already


def test_a_copy_of_the_source_is_as_good(tmp_path: Path) -> None:
    """By what it holds, not by the times of its files; outputs are the same bytes, too."""
    source, copy = sharded(net(), tmp_path / "in"), tmp_path / "copy"
    tensorlrf.compress_checkpoint(source, tmp_path / "out", keep_params=0.5)
    copy.mkdir()
    for file in source.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert tensorlrf.compress_checkpoint(copy, tmp_path / "out", keep_params=0.5).already
    tensorlrf.compress_checkpoint(copy, tmp_path / "other", keep_params=0.5)
    assert contents(tmp_path / "other") == contents(tmp_path / "out")


def test_other_values_are_another_source(tmp_path: Path) -> None:
    source, out = sharded(net(), tmp_path / "in"), tmp_path / "out"
    tensorlrf.compress_checkpoint(source, out, keep_params=0.5)
    shard = source / "model-00001-of-00003.safetensors"
    whole = shard.read_bytes()
    held = load_file(shard)
    for name in held:
        shard.write_bytes(whole)
        changed = {**held, name: held[name] + 1}
        save_file(changed, shard)
        with pytest.raises(FileError, match="exists"):
            tensorlrf.compress_checkpoint(source, out, keep_params=0.5)
    shard.write_bytes(whole)
    (source / "tokenizer.json").write_text("{ }")
    with pytest.raises(FileError, match="exists"):
        tensorlrf.compress_checkpoint(source, out, keep_params=0.5)


def test_an_output_that_is_damaged_is_none(tmp_path: Path) -> None:
    source, out = sharded(net(), tmp_path / "in"), tmp_path / "out"
    tensorlrf.compress_checkpoint(source, out, keep_params=0.5)
    before = contents(out)
    for name in before:
        file = out / name
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(FileError, match="exists"):
            tensorlrf.compress_checkpoint(source, out, keep_params=0.5)
        file.write_bytes(whole)
    shard = next(name for name in before if name.startswith("tensorlrf-"))
    (out / shard).unlink()
    report = tensorlrf.compress_checkpoint(source, out, keep_params=0.5, overwrite=True)
    assert not report.already
    assert contents(out) == before
    anew = tensorlrf.compress_checkpoint(source, out, keep_params=0.5, overwrite=True, restart=True)
    assert not anew.already


def test_a_log_tells_of_layers_and_shards(tmp_path: Path) -> None:
    source, log = sharded(net(), tmp_path / "in"), tmp_path / "run.jsonl"
    report = tensorlrf.compress_checkpoint(
        source, tmp_path / "out", keep_params=0.5, shard_bytes=3000, log=log
    )
    found = [json.loads(line) for line in log.read_text().splitlines()]
    layers = [one for one in found if one["event"] == "layer"]
    assert [one["name"] for one in layers] == [row.name for row in report.layers]
    assert [one["weight_error"] for one in layers] == [row.weight_error for row in report.layers]
    shards = {one["file"]: one["bytes"] for one in found if one["event"] == "shard"}
    assert sum(shards.values()) == report.bytes_after
    assert set(shards) < set(contents(tmp_path / "out"))
    assert (found[0]["event"], found[-1]["event"]) == ("begun", "done")
    assert found[-1]["task"] == "compress_checkpoint"
    assert found[-1]["peak"] > 0
