"""How far long work is: lines where no terminal is, a log for each run, and nothing in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tensorlrf
from tensorlrf.compression import _progress
from tensorlrf.compression._progress import progress_bar
from tensorlrf.errors import ArgumentError, FileError, TensorlrfWarning
from tensorlrf.files import events


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def test_a_line_a_minute_and_one_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though no layer ends within it."""
    monkeypatch.setattr(_progress, "MINUTE", 0.05)
    with progress_bar("compress", 4, True) as advance:
        for k in range(3):
            advance(f"layers.{k}")
        deadline = time.monotonic() + 20
        said = ""
        while said.count("\n") < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
            said += capsys.readouterr().err
        advance("layers.3")
    first = said.splitlines()[0]
    assert first.startswith("compress: 3 of 4, 1 s so far, about 1 s left, layers.2")
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "compress: 4 of 4, 1 s so far, layers.3"


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("compress", 1, True) as advance:
        advance("x")
    assert capsys.readouterr() == ("", "")


def test_time_left_does_not_count_what_an_earlier_run_did() -> None:
    with progress_bar("compress", 10, False) as advance:
        state: Any = advance
        for k in range(8):
            advance(str(k), earlier=True)
        assert "left" not in state.line()
        advance("8")
        state.begun -= 599
        assert state.line() == "compress: 9 of 10, 10 min so far, about 10 min left, 8"


@pytest.mark.parametrize("progress", [True, False])
def test_a_log_has_a_line_for_each_layer(tmp_path: Path, progress: bool) -> None:
    path = tmp_path / "run.jsonl"
    with tensorlrf.log_to(path, "mine"):
        _, report = tensorlrf.compress(net(), keep_params=0.5, skip=[], progress=progress)
    found = lines(path)
    assert [(one["event"], one["task"]) for one in found] == [
        ("begun", "mine"), ("begun", "compress"), ("layer", "compress"), ("layer", "compress"),
        ("done", "compress"), ("done", "mine"),
    ]  # fmt: skip
    rows = [row for row in report.layers if row.factored]
    for k, (one, row) in enumerate(zip(found[2:4], rows, strict=True)):
        assert (one["name"], one["done"], one["total"]) == (row.name, k + 1, 2)
        assert one["bytes"] == 4 * one["params"] > 0
        assert one["weight_error"] == row.weight_error
    assert all(one["memory"] > 0 and one["process"] == os.getpid() for one in found)
    assert [one["seconds"] for one in found] == sorted(one["seconds"] for one in found)
    with tensorlrf.log_to(path):
        pass
    assert len(lines(path)) == len(found) + 2  # appended


def test_what_is_raised_is_in_the_log(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with pytest.raises(ArgumentError), tensorlrf.log_to(path):
        tensorlrf.compress(net(), keep_params=7)
    assert lines(path)[-1]["event"] == "error"
    assert "keep_params=7" in lines(path)[-1]["message"]
    with pytest.raises(KeyboardInterrupt), tensorlrf.log_to(path):
        raise KeyboardInterrupt
    assert lines(path)[-1]["event"] == "stopped"


def test_steps_are_told_once_a_second(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with tensorlrf.log_to(path), progress_bar("refine", None, False) as advance:
        for _ in range(1000):
            advance("")
    steps = [one for one in lines(path) if one["event"] == "step"]
    assert 1 <= len(steps) < 100
    assert steps[0]["done"] == 1


def test_refinement_and_losses_are_logged(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    model = net()
    data = [torch.randn(64, 16, device="cpu", dtype=torch.float32) for _ in range(4)]
    with tensorlrf.log_to(path):
        small, _ = tensorlrf.compress(model, keep_params=0.5, skip=[], calibration=data)
        tensorlrf.refine(small, model, data, steps=4, progress=False)
        tensorlrf.sensitivity(model, calibration=data, progress=False)
    begun = {one["task"] for one in lines(path) if one["event"] == "begun"}
    done = {one["task"] for one in lines(path) if one["event"] == "done"}
    assert {"compress", "refine", "differentiate"} <= begun == done


def test_a_log_that_cannot_be_is_told_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="log="), tensorlrf.log_to(tmp_path):
        raise AssertionError("not reached")


def test_a_log_that_ends_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, left = os.write, [1]

    def write(file: int, data: bytes) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return own(file, data)

    path = tmp_path / "run.jsonl"
    with tensorlrf.log_to(path):
        monkeypatch.setattr(events.os, "write", write)
        with pytest.warns(TensorlrfWarning, match="ends here"):
            tensorlrf.compress(net(), keep_params=0.5, progress=False)
        monkeypatch.undo()
    assert len(lines(path)) == 2


SCRIPT = """
import sys, time
from tensorlrf.compression import _progress
_progress.MINUTE = 0.02
with _progress.progress_bar("compress", 2, True) as advance:
    sys.stderr.close()
    time.sleep(0.2)
    advance("x")
print("fine")
"""


def test_nobody_has_to_listen() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "fine\n", done.stderr
