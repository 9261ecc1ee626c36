"""The search for the fastest launch."""

from __future__ import annotations

import math

import pytest
import torch

from tensorlrf_kernels import _tables, autotune, tune
from tensorlrf_kernels.chips import A100, H200, Chip
from tensorlrf_kernels.launches import LaunchConfig, Problem
from tensorlrf_kernels.lowrank_linear import launch

PROBLEM = Problem(8192, 4096, 4096, 64, torch.bfloat16)


def distance(config: LaunchConfig, target: LaunchConfig) -> float:
    """Steps between two launches of one kernel: a landscape with one valley."""
    pairs = [(config.blocks[k], target.blocks[k]) for k in target.blocks if k != "BS"]
    pairs.append((config.num_warps, target.num_warps))
    steps = sum(abs(math.log2(a / b)) for a, b in pairs)
    steps += abs(config.num_stages - target.num_stages) + (config.registers != target.registers)
    return 1 + steps


@pytest.fixture
def never_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every launch fits, but for those with 16 warps."""

    def verdict(op: str, direction: str, config: LaunchConfig, *_: object) -> str:
        return "spilled" if config.num_warps == 16 else ""

    monkeypatch.setattr(tune, "verdict", verdict)


@pytest.mark.usefixtures("never_compiles")
@pytest.mark.parametrize("rows", [16, 8192])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_the_search_reaches_the_fastest_of_a_valley(direction: str, rows: int) -> None:
    problem = PROBLEM._replace(rows=rows)
    start = getattr(launch, direction)(problem, H200)
    target = start
    for k in (0, 2, 5):
        target = list(launch.neighbours(target, problem, H200))[k]
    found = tune.search(
        "lowrank_linear", direction, problem, H200, lambda config: distance(config, target)
    )
    assert found is not None
    assert distance(found.best, target) == 1
    assert next(iter(found.times)) == str(start)
    assert found.times[str(found.best)] == min(found.times.values())


@pytest.mark.usefixtures("never_compiles")
def test_what_does_not_fit_is_never_timed() -> None:
    timed = []

    def measure(config: LaunchConfig) -> float:
        timed.append(config)
        return 1 / config.num_warps

    found = tune.search("lowrank_linear", "forward", PROBLEM, H200, measure)
    assert found is not None
    assert found.best.num_warps == 8
    assert all(config.num_warps != 16 for config in timed)
    assert set(found.refused.values()) == {"spilled"}
    assert "refused" in str(found)


@pytest.mark.usefixtures("never_compiles")
def test_a_launch_that_the_device_refuses_is_left_out() -> None:
    def measure(config: LaunchConfig) -> float:
        if config.num_warps == 2:
            raise RuntimeError("too many blocks in cooperative launch\nmore")
        return float(config.num_warps)

    found = tune.search("lowrank_linear", "forward", PROBLEM._replace(rows=16), H200, measure)
    assert found is not None
    assert found.best.num_warps == 4
    assert "too many blocks in cooperative launch" in found.refused.values()

    def never(_: LaunchConfig) -> float:
        raise RuntimeError("no device")

    with pytest.raises(RuntimeError, match="no device"):
        tune.search("lowrank_linear", "forward", PROBLEM, H200, never)


@pytest.mark.usefixtures("never_compiles")
def test_the_search_ends_in_time_and_keeps_the_heuristic() -> None:
    found = tune.search("lowrank_linear", "forward", PROBLEM, H200, lambda _: 1.0, seconds=0)
    assert found is None or len(found.times) <= 1
    none = tune.search("lowrank_linear", "forward", PROBLEM._replace(rank=999), H200, lambda _: 1.0)
    assert none is None


def test_a_forward_tunes_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(tune, "tune_once", lambda *args: asked.append(args))
    device = torch.device("cpu")
    _tables.launch_for("lowrank_linear", "forward", PROBLEM, device)
    assert asked == []
    with autotune():
        _tables.launch_for("lowrank_linear", "forward", PROBLEM, device)
    assert asked == [("lowrank_linear", "forward", PROBLEM, device)]
    _tables.launch_for("lowrank_linear", "forward", PROBLEM, device)
    assert len(asked) == 1


def test_what_was_tuned_is_used_for_its_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    config = next(iter(launch.neighbours(launch.forward(PROBLEM, H200), PROBLEM, H200)))
    monkeypatch.setattr(tune, "verdict", lambda *_: "")
    monkeypatch.setattr(tune, "time_launch", lambda *args: 0.5 if args[2] == config else 1.0)
    device = torch.device("cpu")
    try:
        found = tune.tune("lowrank_linear", "forward", PROBLEM, device)
        assert found is not None
        assert found.best == config
        assert _tables.choose("lowrank_linear", "forward", PROBLEM, device) == config
    finally:
        _tables._entries.cache_clear()
        _tables.choose.cache_clear()


@pytest.mark.aot
@pytest.mark.parametrize(
    ("chip", "blocks", "words"),
    [
        (H200, {"BM": 128, "BN": 256, "BK": 256}, "shared memory"),
        (A100, {"BM": 128, "BN": 256}, "registers spilled"),
    ],
)
def test_the_verdict_on_what_does_not_fit(chip: Chip, blocks: dict[str, int], words: str) -> None:
    config = launch.forward(PROBLEM, chip)
    assert config is not None
    assert tune.verdict("lowrank_linear", "forward", config, PROBLEM, chip) == ""
    too_wide = LaunchConfig("prefill", {**config.blocks, **blocks}, 4, 3)
    assert words in tune.verdict("lowrank_linear", "forward", too_wide, PROBLEM, chip)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["8192x4096"], "problem='8192x4096' is not ROWSxOUTxINxRANK"),
        (["0x1x1x1"], "every size must be 1 at least"),
        (["1x1x1x1", "--chip", "H9000"], "'H9000' is unknown"),
    ],
)
def test_the_command_names_what_is_wrong(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune.main(arguments) == 2
    assert words in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU to time on")
def test_the_command_says_that_there_is_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.main(["8192x4096x4096x64"]) == 2
    assert "no CUDA GPU is visible" in capsys.readouterr().err
