"""What a run by layers will take is told before, to the byte where ranks are fixed."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import tensorlrf
from tensorlrf.compression import forecast_checkpoint
from tensorlrf.compression._words import duration
from tensorlrf.compression.scale import _timing
from tensorlrf.errors import ArgumentError, FileError
from tests.compression.scale.test_architecture import bert, folder, gemma, gpt2, llama
from tests.compression.scale.test_checkpoint import contents, net, sharded


def _convs() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(8, 16, 3), nn.Conv1d(16, 16, 5), nn.Linear(32, 32))


@pytest.mark.parametrize("method", ["svd", "cp", "tucker"])
def test_bytes_are_exact_where_ranks_are_fixed(tmp_path: Path, method: str) -> None:
    source = tmp_path / "a.safetensors"
    save_file(_convs().state_dict(), source)
    forecast = forecast_checkpoint(source, keep_params=0.5, method=method, threads=1)
    assert forecast.exact
    report = tensorlrf.compress_checkpoint(
        source, tmp_path / "b.safetensors", keep_params=0.5, method=method, threads=1
    )
    assert forecast.bytes_before == report.bytes_before
    assert forecast.bytes_after == report.bytes_after
    assert [row.name for row in forecast.plan.factored] == [row.name for row in report.layers]


@pytest.mark.parametrize("make", [llama, gpt2, bert, gemma])
def test_of_a_model_too(tmp_path: Path, make: Any) -> None:
    """With what is tied, what is made by the model itself, and what stays."""
    torch.manual_seed(0)
    source = folder(make(), tmp_path / "in")
    forecast = forecast_checkpoint(source, keep_params=0.5, threads=1)
    report = tensorlrf.compress_checkpoint(source, tmp_path / "out", keep_params=0.5, threads=1)
    assert forecast.exact
    assert forecast.bytes_after == report.bytes_after


def test_what_only_a_fit_tells_is_judged_by_a_try(tmp_path: Path) -> None:
    source = sharded(net(64), tmp_path / "in")
    for call in ({"error": 0.3}, {"keep_params": 0.5, "method": "kron"}):
        forecast = forecast_checkpoint(source, **call, threads=1)
        report = tensorlrf.compress_checkpoint(
            source, tmp_path / "out", **call, threads=1, overwrite=True
        )
        assert not forecast.exact
        # One weight of a kind speaks for three whose ranks are a few steps of a ladder apart.
        assert abs(forecast.bytes_after - report.bytes_after) < 0.2 * report.bytes_after
        assert "about" in str(forecast)


def test_nothing_is_touched(tmp_path: Path) -> None:
    source = sharded(net(), tmp_path / "in")
    before = contents(source)
    forecast_checkpoint(source, tmp_path / "out", keep_params=0.5)
    assert contents(source) == before
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    with pytest.raises(FileError, match="not there"):
        forecast_checkpoint(tmp_path / "no", keep_params=0.5)
    with pytest.raises(ArgumentError, match="no budget"):
        forecast_checkpoint(source)
    with pytest.raises(ArgumentError, match="shard_bytes"):
        forecast_checkpoint(source, keep_params=0.5, shard_bytes=0)


def test_the_disk_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = sharded(net(), tmp_path / "in")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 0, 1000))
    forecast = forecast_checkpoint(source, tmp_path / "out" / "deep", keep_params=0.5)
    assert (forecast.fits, forecast.disk_free) == (False, 1000)
    assert "1,000 are free: NOT ENOUGH" in str(forecast)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, 10**9))
    assert forecast_checkpoint(source, tmp_path / "out", keep_params=0.5).fits
    assert forecast_checkpoint(source, keep_params=0.5).fits is None
    told = json.loads(forecast.to_json())
    assert told["fits"] is False
    assert told["plan"]["keep_params"] == 0.5


@pytest.mark.parametrize("name", ["out", "out.safetensors"])
def test_a_run_needs_no_more_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from tensorlrf.compression.scale import _assembled, _shards

    source = sharded(net(), tmp_path / "in")
    call = {"keep_params": 0.5, "shard_bytes": 2500}
    forecast = forecast_checkpoint(source, tmp_path / name, **call)
    peak, own = [0], _shards.write_pieces

    def write_pieces(*args: Any) -> Any:
        done = own(*args)
        files = [f for f in tmp_path.rglob("*") if f.is_file() and source not in f.parents]
        peak[0] = max(peak[0], sum(f.stat().st_size for f in files))
        return done

    monkeypatch.setattr(_assembled, "write_pieces", write_pieces)
    tensorlrf.compress_checkpoint(source, tmp_path / name, **call)
    headers = 40_000  # of files, and the journal
    assert forecast.bytes_after < peak[0] <= forecast.disk_needed + headers


def test_large_weights_are_tried_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    own = _timing.factor

    def factor(name: str, layer: Any, *args: Any) -> Any:
        sizes.append(layer.weight.numel())
        return own(name, layer, *args)

    monkeypatch.setattr(_timing, "factor", factor)
    monkeypatch.setattr(_timing, "FIRST", 16)
    monkeypatch.setattr(_timing, "SECONDS", 1e-9)
    source = sharded(net(64, 8), tmp_path / "in")
    forecast = forecast_checkpoint(source, keep_params=0.5, threads=1)
    assert max(sizes) == 16 * 16
    assert len(sizes) <= 2 * _timing.KINDS
    assert forecast.seconds > 0
    assert "from 3 decompositions of up to 16 x 16 here and now, 1 thread" in forecast.timed


def test_words_of_a_time() -> None:
    times = {0.2: "1 s", 40.0: "40 s", 100.0: "2 min", 3600.0: "1 h 0 min", 7500.0: "2 h 5 min"}
    assert {seconds: duration(seconds) for seconds in times} == times
