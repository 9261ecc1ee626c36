"""A checkpoint is compressed a layer at a time, to what its model would give, and a run that ended
early goes on to the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tensorlrf
from tensorlrf.compression.scale import _run
from tensorlrf.errors import ArgumentError, FileError, FileFormatError
from tensorlrf.files.job import job_folder
from tests.compression.scale.blocks.networks import Block
from tests.failing import Failing, cut_short

pytestmark = pytest.mark.usefixtures("interruptible")

ROOT = Path(__file__).resolve().parents[3]


def net(n: int = 16, blocks: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(*[Block(n) for _ in range(blocks)], nn.Linear(n, n)).eval()


def sharded(model: nn.Module, folder: Path, shards: int = 3) -> Path:
    """A folder as transformers writes it."""
    folder.mkdir()
    state = model.state_dict()
    names = list(state)
    where = {}
    for k in range(shards):
        file = f"model-{k + 1:05}-of-{shards:05}.safetensors"
        own = names[k::shards]
        save_file({name: state[name] for name in own}, folder / file)
        where |= dict.fromkeys(own, file)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def contents(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return {path.name: path.read_bytes()}
    return {f.name: f.read_bytes() for f in sorted(path.iterdir()) if f.is_file()}


@pytest.mark.parametrize("method", ["svd", "kron", "blr"])
def test_one_file_gives_what_the_model_gives(tmp_path: Path, method: str) -> None:
    model = net()
    source = tmp_path / "a.safetensors"
    save_file(model.state_dict(), source)
    report = tensorlrf.compress_checkpoint(
        source, tmp_path / "small.safetensors", keep_params=0.5, method=method, threads=1
    )
    wanted, _ = tensorlrf.compress(model, keep_params=0.5, method=method, skip=[], progress=False)
    small = tensorlrf.load(tmp_path / "small.safetensors", model)
    x = torch.randn(4, 16, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(small(x), wanted(x))
    told = tensorlrf.inspect(tmp_path / "small.safetensors", verify=True)
    assert {row.name: row.rank for row in told.layers} == {r.name: r.rank for r in report.layers}
    assert report.bytes_after == sum(
        t.numel() * t.element_size() for t in load_file(tmp_path / "small.safetensors").values()
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "small.safetensors"]


def test_shards_to_shards(tmp_path: Path) -> None:
    model = net().bfloat16()
    source = sharded(model, tmp_path / "in")
    before = contents(source)
    out = tmp_path / "out"
    report = tensorlrf.compress_checkpoint(source, out, keep_params=0.5, shard_bytes=1500)
    assert contents(source) == before
    files = contents(out)
    shards = [name for name in files if name.startswith("tensorlrf-")]
    assert len(shards) > 2
    assert {"config.json", "tokenizer.json", "tensorlrf.safetensors"} < set(files)
    assert not (out / ".tensorlrf.job").exists()
    sizes = [sum(t.numel() * 2 for t in load_file(out / shard).values()) for shard in shards]
    assert max(sizes) <= 1500
    small = tensorlrf.load(out / "tensorlrf.safetensors", model)
    again = tensorlrf.load(out, model)
    assert small[0].up.factors.dtype == torch.bfloat16
    for (name, p), q in zip(small.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q), name
    told = tensorlrf.inspect(out / "tensorlrf.safetensors", verify=True)
    assert told.tensors == report.tensors
    # a shard that is damaged, missing, or holds more
    shard = out / shards[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(FileFormatError, match="checksum"):
        tensorlrf.load(out, model)
    shard.unlink()
    with pytest.raises(FileFormatError, match="no file of safetensors beside it"):
        tensorlrf.load(out, model)
    save_file({**load_file(out / shards[1]), "more": torch.zeros(1)}, shard)
    with pytest.raises(FileFormatError, match="is missing in"):
        tensorlrf.load(out, model)


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    own = _run.factor

    def factor(name: str, *args: Any) -> Any:
        calls.append(name)
        return own(name, *args)

    monkeypatch.setattr(_run, "factor", factor)
    return calls


def test_a_run_that_fails_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = sharded(net(), tmp_path / "in")
    call = {"keep_params": 0.5, "shard_bytes": 3000}
    tensorlrf.compress_checkpoint(source, tmp_path / "whole", **call)
    own = _run.factor
    out = tmp_path / "out"
    for last in range(2, 8):  # each time a few layers further
        monkeypatch.setattr(_run, "factor", Failing(own, last // 2))
        try:
            tensorlrf.compress_checkpoint(source, out, **call)
            break
        except MemoryError:
            assert [p.name for p in out.iterdir()] == [".tensorlrf.job"]
    monkeypatch.setattr(_run, "factor", own)
    calls = _counted(monkeypatch)
    report = tensorlrf.compress_checkpoint(source, out, overwrite=True, **call)
    assert contents(out) == contents(tmp_path / "whole")
    assert len(calls) + report.resumed == len(report.layers)


def test_what_is_damaged_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = sharded(net(), tmp_path / "in"), tmp_path / "out"
    tensorlrf.compress_checkpoint(source, tmp_path / "whole", keep_params=0.5)
    folder = job_folder(out, as_folder=True)
    with cut_short(monkeypatch, _run, "factor", 5):
        tensorlrf.compress_checkpoint(source, out, keep_params=0.5)
    parts = sorted((folder / "parts").iterdir())
    assert len(parts) >= 4
    parts[0].write_bytes(b"")
    parts[1].write_bytes(parts[1].read_bytes()[:-1] + b"?")
    journal = folder / "journal"
    torn = journal.read_bytes()
    journal.write_bytes(torn + torn.splitlines()[-1][:40])  # a line that was being written
    calls = _counted(monkeypatch)
    tensorlrf.compress_checkpoint(source, out, keep_params=0.5)
    assert contents(out) == contents(tmp_path / "whole")
    assert len(calls) < 7


def _interrupted(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, **call: Any) -> Path:
    """A run that Ctrl-C ends within its second layer."""
    own, seen = _run.factor, []

    def factor(name: str, *args: Any) -> Any:
        seen.append(name)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return own(name, *args)

    with monkeypatch.context() as patch:
        patch.setattr(_run, "factor", factor)
        with pytest.raises(KeyboardInterrupt) as stop:
            tensorlrf.compress_checkpoint(source, out, **call)
    assert "2 of 7 layers are done" in stop.value.__notes__[0]
    return job_folder(out, as_folder=out.suffix == "")


def test_ctrl_c_finishes_the_layer_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = sharded(net(), tmp_path / "in"), tmp_path / "out"
    before = signal.getsignal(signal.SIGINT)
    _interrupted(source, out, monkeypatch, keep_params=0.5)
    assert signal.getsignal(signal.SIGINT) is before
    calls = _counted(monkeypatch)
    assert tensorlrf.compress_checkpoint(source, out, keep_params=0.5).resumed == 2
    assert len(calls) == 5


def test_another_run_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = sharded(net(), tmp_path / "in"), tmp_path / "out"
    folder = _interrupted(source, out, monkeypatch, keep_params=0.5)
    with pytest.raises(ArgumentError, match=r"another one: plan was .*restart=True"):
        tensorlrf.compress_checkpoint(source, out, keep_params=0.4)
    with pytest.raises(ArgumentError, match="threads was"):
        tensorlrf.compress_checkpoint(source, out, keep_params=0.5, threads=77)
    journal = folder / "journal"
    text = journal.read_bytes()
    for line, match in ((0, "journal is damaged: line 1"), (1, "damaged: line 2")):
        lines = text.splitlines()
        lines[line] = lines[line].replace(b'"', b"'", 1)
        journal.write_bytes(b"\n".join(lines) + b"\n")
        with pytest.raises(FileFormatError, match=match):
            tensorlrf.compress_checkpoint(source, out, keep_params=0.5)
    report = tensorlrf.compress_checkpoint(source, out, keep_params=0.5, restart=True)
    assert report.resumed == 0
    with pytest.raises(FileError, match="exists"):
        tensorlrf.compress_checkpoint(source, out, keep_params=0.4)


def test_a_disk_that_is_full_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = sharded(net(), tmp_path / "in"), tmp_path / "out"
    own, left = _run.store, [3]

    def store(*args: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return own(*args)

    with monkeypatch.context() as patch:
        patch.setattr(_run, "store", store)
        with pytest.raises(FileError, match="No space left"):
            tensorlrf.compress_checkpoint(source, out, keep_params=0.5)
    assert tensorlrf.compress_checkpoint(source, out, keep_params=0.5).resumed == 3


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
import tensorlrf
tensorlrf.compress_checkpoint(sys.argv[1], sys.argv[2], keep_params=0.5, progress=False)
"""


def _start(source: Path, out: Path) -> subprocess.Popen[bytes]:
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    command = [sys.executable, "-c", SCRIPT, str(source), str(out)]
    return subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)


def test_killed_at_some_instants(tmp_path: Path) -> None:
    """And while it is alive, nobody else writes there."""
    source = sharded(net(256, 4), tmp_path / "in")
    first = _start(source, tmp_path / "whole")
    assert first.wait() == 0
    out = tmp_path / "out"
    for kill in range(20):
        run = _start(source, out)
        journal = job_folder(out, as_folder=True) / "journal"
        seen = journal.stat().st_size if journal.exists() else 0
        while run.poll() is None:
            if journal.exists() and journal.stat().st_size > seen + 300 * (kill % 3):
                break
            time.sleep(0.001)
        if kill == 0 and run.poll() is None:
            other = _start(source, out)
            assert other.wait() != 0 or run.poll() is not None
        run.kill()
        if run.wait() == 0:
            break
    else:
        assert _start(source, out).wait() == 0
    assert contents(out) == contents(tmp_path / "whole")
    assert not (out / ".tensorlrf.job").exists()


def test_what_cannot_be_is_told_before_any_work(tmp_path: Path) -> None:
    source = sharded(net(), tmp_path / "in")
    call = {"keep_params": 0.5}
    with pytest.raises(FileError, match="not there"):
        tensorlrf.compress_checkpoint(tmp_path / "no", tmp_path / "out", **call)
    with pytest.raises(FileError, match="lie in each other"):
        tensorlrf.compress_checkpoint(source, source / "out", **call)
    with pytest.raises(ArgumentError, match="random_state=None must be an int"):
        tensorlrf.compress_checkpoint(source, tmp_path / "out", random_state=None, **call)
    with pytest.raises(ArgumentError, match="shard_bytes=0"):
        tensorlrf.compress_checkpoint(source, tmp_path / "out", shard_bytes=0, **call)
    with pytest.raises(ArgumentError, match="no budget"):
        tensorlrf.compress_checkpoint(source, tmp_path / "out")
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("x")
    with pytest.raises(FileError, match="not written by tensorlrf"):
        tensorlrf.compress_checkpoint(source, other, overwrite=True, **call)
    index = source / "model.safetensors.index.json"
    told = json.loads(index.read_text())
    first = next(iter(told["weight_map"]))
    told["weight_map"].pop(first)
    index.write_text(json.dumps(told))
    with pytest.raises(FileFormatError, match=r"the index does not name it"):
        tensorlrf.compress_checkpoint(source, tmp_path / "out", **call)
    (source / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileFormatError, match="which is missing"):
        tensorlrf.compress_checkpoint(source, tmp_path / "out", **call)
    assert not (tmp_path / "out").exists()


def test_a_weight_that_is_not_finite_stays(tmp_path: Path) -> None:
    model = net()
    with torch.no_grad():
        model[1].up.weight[0, 0] = torch.nan
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    out = tmp_path / "b.safetensors"
    report = tensorlrf.compress_checkpoint(tmp_path / "a.safetensors", out, keep_params=0.5)
    assert report.stays["1.up"] == "its weight contains NaN or Inf"
    small = tensorlrf.load(out, model)
    assert torch.equal(small[1].up.bias, model[1].up.bias)
    assert type(small[1].up) is nn.Linear
    assert type(small[0].up) is not nn.Linear
