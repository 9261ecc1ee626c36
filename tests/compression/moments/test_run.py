"""Moments that are summed up into a file: a run that ends early goes on to the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tensorlrf
from tensorlrf.compression import Moments
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.moments import _passes, _run
from tensorlrf.errors import ArgumentError, CalibrationWarning, FileError, FileFormatError
from tensorlrf.files.job import job_folder
from tensorlrf.files.journal import Journal
from tests.compression.moments.nets import (
    assert_same,
    attention,
    convolutions,
    images,
    one_way,
    routed,
    rows,
    sketched,
    wide,
)
from tests.failing import Failing, cut_short

pytestmark = pytest.mark.usefixtures("interruptible")

ROOT = Path(__file__).resolve().parents[3]
CASES: dict[str, tuple[nn.Module, list[torch.Tensor]]] = {
    "attention": (attention(), rows(12, 9)),
    "convolutions": (convolutions(), images(9)),
    "routed": (routed(), [*one_way(0), *one_way(1)]),
}


def into(path: Path, model: nn.Module, batches: list[torch.Tensor], **more: Any) -> Moments:
    return tensorlrf.calibrate(model, batches, path, skip=[], threads=1, **more)


def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a few kB are written after every second batch."""
    monkeypatch.setattr(_run, "EVERY_BYTES", 1)


# ---- what is in the file -----------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_a_file_has_what_memory_would_have(case: str, tmp_path: Path) -> None:
    model, batches = CASES[case]
    path = tmp_path / "m.safetensors"
    found = into(path, model, batches)
    wanted = tensorlrf.calibrate(model, batches, skip=[])
    assert_same(found, wanted, 0.0 if case == "attention" else 1e-12)
    assert found == Moments.load(path)
    assert os.listdir(tmp_path) == ["m.safetensors"]


@pytest.mark.parametrize("case", CASES)
def test_parts_have_what_the_whole_has(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batches = CASES[case]
    into(tmp_path / "one.safetensors", model, batches)
    own = Calibration.read

    def narrow(*args: Any, **more: Any) -> Any:
        data = own(*args, **more)
        assert data is not None
        data.__dict__["room"] = 1000  # one layer at a time
        return data

    monkeypatch.setattr(Calibration, "read", narrow)
    into(tmp_path / "parts.safetensors", model, batches)
    one = (tmp_path / "one.safetensors").read_bytes()
    assert (tmp_path / "parts.safetensors").read_bytes() == one


def test_others_are_added_in_whichever_order(tmp_path: Path) -> None:
    model, batches = CASES["attention"]
    whole = tensorlrf.calibrate(model, batches, skip=[])
    for k in range(2):
        into(tmp_path / f"{k}.safetensors", model, batches[3 * k : 3 * k + 3])
    others: list[Any] = [tmp_path / "0.safetensors", Moments.load(tmp_path / "1.safetensors")]
    into(tmp_path / "all.safetensors", model, batches[6:], add=others)
    into(tmp_path / "again.safetensors", model, batches[6:], add=others[::-1])
    all_of_it = tmp_path / "all.safetensors"
    assert_same(Moments.load(all_of_it), whole, 1e-12)
    assert (tmp_path / "again.safetensors").read_bytes() == all_of_it.read_bytes()


def test_a_sketch_goes_on_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seldom(monkeypatch)
    model, batches = wide(), rows(256, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        more = {"memory_limit": sketched(model)}
        wanted = tmp_path / "wanted.safetensors"
        into(wanted, model, batches, **more)
        path = tmp_path / "m.safetensors"
        with cut_short(monkeypatch, _passes, "run_to", 7):
            into(path, model, batches, **more)
        into(path, model, batches, **more)
    assert path.read_bytes() == wanted.read_bytes()


# ---- a run that ends early ---------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_fails_goes_on_to_the_same_bytes(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seldom(monkeypatch)
    model, batches = CASES[case]
    wanted, path = tmp_path / "wanted.safetensors", tmp_path / "m.safetensors"
    into(wanted, model, batches)
    for last in range(1, 30, 3):
        with monkeypatch.context() as patch:
            patch.setattr(_passes, "run_to", Failing(_passes.run_to, last))
            try:
                into(path, model, batches)
                break
            except MemoryError:
                assert not path.exists()
    assert path.read_bytes() == wanted.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["m.safetensors", "wanted.safetensors"]


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seldom(monkeypatch)
    model, batches = CASES["attention"]
    path = tmp_path / "m.safetensors"
    with cut_short(monkeypatch, _passes, "run_to", 7):
        into(path, model, batches)
    again = Failing(_passes.run_to, 100)
    monkeypatch.setattr(_passes, "run_to", again)
    into(path, model, batches)
    assert again.made == len(batches) - 6  # written after every second one


def test_what_is_damaged_is_summed_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seldom(monkeypatch)
    model, batches = CASES["attention"]
    wanted, path = tmp_path / "wanted.safetensors", tmp_path / "m.safetensors"
    into(wanted, model, batches)
    with cut_short(monkeypatch, _passes, "run_to", 7):
        into(path, model, batches)
    (part,) = (job_folder(path, as_folder=False) / "parts").iterdir()
    held = bytearray(part.read_bytes())
    held[-100] ^= 1
    part.write_bytes(held)
    into(path, model, batches)
    assert path.read_bytes() == wanted.read_bytes()


@pytest.mark.parametrize("case", ["attention", "convolutions"])
def test_ctrl_c_ends_after_the_batch_at_hand(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seldom(monkeypatch)
    model, batches = CASES[case]
    wanted, path = tmp_path / "wanted.safetensors", tmp_path / "m.safetensors"
    into(wanted, model, batches)
    own, calls = _passes.run_to, [0]

    def interrupted(*args: Any) -> None:
        calls[0] += 1
        if calls[0] == 3:
            os.kill(os.getpid(), signal.SIGINT)
        own(*args)

    with monkeypatch.context() as patch:
        patch.setattr(_passes, "run_to", interrupted)
        with pytest.raises(KeyboardInterrupt) as stop:
            into(path, model, batches)
    assert calls == [3]
    assert "batches are kept in" in stop.value.__notes__[0]
    into(path, model, batches)
    assert path.read_bytes() == wanted.read_bytes()


def test_another_run_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = CASES["attention"]
    path = tmp_path / "m.safetensors"
    with cut_short(monkeypatch, _passes, "run_to", 4):
        into(path, model, batches)
    for changed, why in (
        ({"batches": batches[1:]}, "data was"),
        ({"model": attention(seed=1)}, "layers was"),
        ({"threads": 3}, "threads was 1, is 3"),
    ):
        call: dict[str, Any] = {"model": model, "batches": batches, "threads": 1, **changed}
        with pytest.raises(ArgumentError, match=rf"another one: {why}.*restart=True"):
            tensorlrf.calibrate(
                call["model"], call["batches"], path, skip=[], threads=call["threads"]
            )
    found = into(path, attention(seed=1), batches, restart=True)
    assert found.batches == len(batches)
    with pytest.raises(FileError, match="exists"):
        into(path, model, batches)
    into(path, model, batches, overwrite=True)
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_a_last_line_that_is_torn_was_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batches = CASES["attention"]
    path = tmp_path / "m.safetensors"
    with cut_short(monkeypatch, _passes, "run_to", 4):
        into(path, model, batches)
    journal = job_folder(path, as_folder=False) / "journal"
    lines = journal.read_bytes().splitlines()
    journal.write_bytes(b"\n".join([*lines[:-1], lines[-1].replace(b"0.q", b"0.z"), b""]))
    assert into(path, model, batches).batches == len(batches)


def _said(entry: dict[str, Any], key: str) -> Any:
    """What a stranger may have the first entry of a journal say, with a checksum that fits."""
    first, *_ = entry["parts"][0]
    return {
        "forms": {**entry["forms"], first: ["sketch", 1 << 62]},
        "like": {first: "no layer"},
        "parts": [*entry["parts"], [first]],
    }[key]


@pytest.mark.parametrize("key", ["forms", "like", "parts"])
def test_a_journal_that_lies_is_told(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batches = CASES["attention"]
    path = tmp_path / "m.safetensors"
    with cut_short(monkeypatch, _passes, "run_to", 4):
        into(path, model, batches)
    own = Journal._read

    def read(journal: Journal, head: dict[str, Any]) -> int:
        end = own(journal, head)
        journal.entries[0][key] = _said(journal.entries[0], key)
        return end

    monkeypatch.setattr(Journal, "_read", read)
    with pytest.raises(FileFormatError, match=f"as '{key}' is not of this model; begin anew"):
        into(path, model, batches)
    assert not path.exists()


def test_what_cannot_be_is_told_before_any_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batches = CASES["attention"]
    other = tmp_path / "other.safetensors"
    into(other, attention(seed=1), batches)
    monkeypatch.setattr(_passes, "run_to", Failing(_passes.run_to, 0, AssertionError))
    path = tmp_path / "m.safetensors"
    with pytest.raises(ArgumentError, match=r"the weight of 0\.q has other values"):
        into(path, model, batches, add=[other])
    with pytest.raises(FileError, match="missing"):
        into(tmp_path / "no" / "m.safetensors", model, batches)
    (tmp_path / "bad.safetensors").write_bytes(b"12345678")
    with pytest.raises(FileFormatError):
        into(path, model, batches, add=[tmp_path / "bad.safetensors"])
    for name, value in (("add", [other]), ("overwrite", True), ("restart", True), ("threads", 1)):
        more: Any = {name: value}
        with pytest.raises(ArgumentError, match=rf"{name}=.* is of a file; give path="):
            tensorlrf.calibrate(model, batches, **more)
    assert sorted(os.listdir(tmp_path)) == ["bad.safetensors", "other.safetensors"]


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
import tensorlrf
from tensorlrf.compression.moments import _run
from tests.failing import Failing, cut_short
from tests.compression.moments.nets import attention, rows
_run.EVERY_BYTES = 1
tensorlrf.calibrate(attention(), rows(12, 24), sys.argv[1], skip=[], progress=False)
"""


def test_killed_at_some_instants(tmp_path: Path) -> None:
    def start(path: Path) -> subprocess.Popen[bytes]:
        env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
        command = [sys.executable, "-c", SCRIPT, str(path), str(ROOT)]
        return subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)

    wanted, path = tmp_path / "wanted.safetensors", tmp_path / "m.safetensors"
    into(wanted, attention(), rows(12, 24))
    parts = job_folder(path, as_folder=False) / "parts"
    for kill in range(3):
        run = start(path)
        until = time.monotonic() + 60
        while run.poll() is None and time.monotonic() < until:
            if parts.exists() and len(list(parts.iterdir())) > 0:
                time.sleep(0.01 * kill)
                break
            time.sleep(0.001)
        run.kill()
        run.wait()
    assert start(path).wait(120) == 0 or path.exists()
    assert Moments.load(path).batches == 24
    assert_same(Moments.load(path), Moments.load(wanted))
    assert sorted(os.listdir(tmp_path)) == ["m.safetensors", "wanted.safetensors"]
