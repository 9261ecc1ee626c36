"""compress --stream: shards to shards without a model, and again where it ended."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import tensorlrf
from tensorlrf.compression.scale import _run
from tests.cli.calls import Program

pytestmark = pytest.mark.usefixtures("interruptible")

CALL = ("--keep-params", ".5", "--stream")


def source(tmp_path: Path) -> tuple[Path, nn.Module]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    path = tmp_path / "in.safetensors"
    save_file(model.state_dict(), path)
    return path, model


def test_there_and_again(tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    path, model = source(tmp_path)
    out = tmp_path / "out"
    plan = program("compress", path, *CALL, "--plan-only", "--json")
    (tmp_path / "plan.json").write_text(plan.out)
    own = _run.factor

    def factor(name: str, *args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return own(name, *args)

    with monkeypatch.context() as patch:
        patch.setattr(_run, "factor", factor)
        stopped = program("compress", path, "-o", out, *CALL)
    assert stopped.code == 130
    assert "1 of 2 layers are done and kept in" in stopped.err
    assert "the same call goes on" in stopped.err
    done = program("compress", path, "-o", out, *CALL)
    assert done.code == 0, done.err
    assert "1 layers are of an earlier run" in done.out
    by_plan = program(
        "compress", path, "-o", tmp_path / "other", "--stream",
        "--plan", tmp_path / "plan.json", "--json",
    )  # fmt: skip
    assert json.loads(by_plan.out)["resumed"] == 0
    small = tensorlrf.load(out, model)
    again = tensorlrf.load(tmp_path / "other", model)
    for p, q in zip(small.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


def test_what_it_does_not_look_at_is_refused(tmp_path: Path, program: Program) -> None:
    path, _ = source(tmp_path)
    for option in (
        ("--keep-flops", ".5"),
        ("--refine", "9"),
        ("--affine",),
        ("--include", "heads"),
    ):
        refused = program("compress", path, "-o", tmp_path / "out", *CALL, *option)
        assert refused.code == 2
        assert f"{option[0]} is not for --stream" in refused.err
    assert "-o is missing" in program("compress", path, *CALL).err
    alone = program(
        "compress", path, "-o", tmp_path / "o.safetensors", "--keep-params", ".5", "--restart"
    )
    assert "--restart is for --stream" in alone.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.safetensors"]


def test_dry_run_tells_what_it_takes(tmp_path: Path, program: Program) -> None:
    path, _ = source(tmp_path)
    shown = program("compress", path, "-o", tmp_path / "out", *CALL, "--dry-run")
    assert shown.code == 0, shown.err
    assert "bytes of all tensors: 8,448 to 4,352 (51.5%)" in shown.out
    assert "are free" in shown.out
    told = json.loads(program("compress", path, *CALL, "--dry-run", "--json").out)
    assert (told["bytes_after"], told["exact"], told["fits"]) == (4352, True, None)
    assert [p.name for p in tmp_path.iterdir()] == ["in.safetensors"]
    assert "--dry-run is for --stream" in program("compress", path, *CALL[:2], "--dry-run").err


def test_a_run_that_is_done_is_left_as_it_is(tmp_path: Path, program: Program) -> None:
    path, _ = source(tmp_path)
    out = tmp_path / "out"
    assert program("compress", path, "-o", out, *CALL).code == 0
    again = program("compress", path, "-o", out, *CALL)
    assert again.code == 0
    assert "nothing was written" in again.out
    assert f"{out} is left as it is" in again.out
    other = program("compress", path, "-o", out, "--keep-params", ".4", "--stream")
    assert other.code == 2
    assert "exists" in other.err


def test_a_log_of_a_run_that_is_stopped(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = source(tmp_path)
    own, log = _run.factor, tmp_path / "run.jsonl"

    def factor(name: str, *args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return own(name, *args)

    with monkeypatch.context() as patch:
        patch.setattr(_run, "factor", factor)
        assert program("compress", path, "-o", tmp_path / "out", *CALL, "--log", log).code == 130
    assert program("compress", path, "-o", tmp_path / "out", *CALL, "--log", log).code == 0
    found = [json.loads(line) for line in log.read_text().splitlines()]
    ends = [one for one in found if one["task"] == "compress" and one["event"] != "layer"]
    assert next(one["event"] for one in ends if one["event"] != "begun") == "stopped"
    assert ends[-1]["event"] == "done"
    layers = [one for one in found if one["event"] == "layer"]
    assert [one.get("earlier", False) for one in layers] == [False, True, False]
