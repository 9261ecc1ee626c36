"""Calibrated on the batches of several ranks a model becomes what it becomes in one process with
all of them, to rounding; wrapped in DistributedDataParallel and sharded as well. Of a sharded model
a rank has a matrix or two whole at a time, whatever is asked for."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import tensorlrf
from tensorlrf.compression import Moments
from tensorlrf.errors import CalibrationWarning
from tests.cli.folders import bert_folder
from tests.compression.moments.nets import assert_same
from tests.compression.scale.ranks.calls import batches, fitted
from tests.compression.scale.ranks.processes import ROOT, TIMEOUT, environment, values

CASES: list[list[Any]] = [
    ["original", "mlp", [6, 6], ""],
    ["original", "mlp", [5, 2], "ddp"],
    ["original", "encoder", [3, 4], "fsdp"],
    ["uniform", "norm", [7, 5], "ddp"],
    ["prefix", "mlp", [0, 7], ""],
    ["independent", "mlp", [3, 1], ""],
    ["measured", "mlp", [2, 4], "fsdp"],
    ["measured", "convolutions", [2, 1], ""],
    ["uniform", "routed", [2, 2], ""],
    ["original", "routed", [2, 2], ""],
    ["independent", "routed", [2, 2], ""],
    ["uniform", "mixture", [4, 5], ""],
    ["sketched", "wide", [3, 3], ""],
    ["uniform", "blocks", [0, 2], "fsdp"],
    ["uniform", "blocks", [2, 1], "tp"],
]

ATOL = 2e-5
"""Sums in float32 over some hundred rows of numbers of about one, in another order."""

WHOLE = 3
"""Times the largest matrix of a sharded model that a rank may have put together at a time: its own,
what another one is at, and what the reference pass beside it holds. The model of blocks is five."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """Rank by rank: every case, what comes of a journal, and what is refused."""
    folder = tmp_path_factory.mktemp("ranks")
    calls = [["calibrated", CASES], ["gone_on", str(folder / "j")], ["refused"]]
    return values(2, folder / "calls", "several", calls)


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda k: "-".join(map(str, CASES[k])))
def test_ranks_fit_as_one_process(found: list[list[Any]], number: int) -> None:
    case, kind, counts, wrap = CASES[number]
    one, other = (rank[0][number] for rank in found)
    put = [rank.pop("put") for rank in (one, other)]
    assert one == other  # bit for bit
    for times in put:
        assert 0 < times <= WHOLE if wrap in ("fsdp", "tp") else not times
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        alone = fitted(case, kind, batches(kind, sum(counts)))
    for key in ("ranks", "batches", "metric"):
        assert one[key] == alone[key]
    # Sketches of parts, merged, are not that of the whole: they are both within one bound.
    rel = 0.2 if case == "sketched" else 1e-4
    assert one["error"] == (alone["error"] and pytest.approx(alone["error"], rel=rel))
    assert one["values"].keys() == alone["values"].keys()
    for name, own in one["values"].items() if case != "sketched" else ():
        assert own == pytest.approx(alone["values"][name], rel=0, abs=ATOL), name


def test_ranks_go_on_from_the_journal_of_the_first(found: list[list[Any]]) -> None:
    """With the metrics beside it, and bit for bit the same."""
    first, second = (rank[1] for rank in found)
    for rank in (first, second):
        assert rank["whole"] == rank["again"]
        assert rank["left"] < 0
    assert first["whole"] == second["whole"]
    assert first["other"][0] == "ArgumentError"
    assert "calibration was" in first["other"][1]
    assert second["other"][0] in ("ArgumentError", "GroupError")


def test_ranks_are_told_alike(found: list[list[Any]]) -> None:
    first, second = (rank[2] for rank in found)
    for what, words in {
        "values": "the values of 2.weight is",
        "layers": "model is",
        "arguments": "budget",
        "target": "target is 'original' on rank 0 and 'prefix' on rank 1",
    }.items():
        assert first[what][0] == second[what][0] == "GroupError"
        assert first[what][1] == second[what][1]
        assert words in first[what][1]
    for what in ("latency", "refine"):
        assert first[what][0] == second[what][0] == "ArgumentError"
        assert "not shared out over the ranks" in first[what][1]
    assert "on every rank, yields nothing" in first["nothing"][1]
    assert "wrapped or sharded" in first["in place"][1]
    assert first["plan"] == second["plan"]
    assert first["sensitivity"] == second["sensitivity"]
    assert first["alone"] != second["alone"]
    assert first["batch"][0] == "GroupError"
    assert "rank 1 failed" in first["batch"][1]
    assert second["batch"][0] == "ArgumentError"


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--stream"]], ids=["whole", "stream"])
def test_torchrun_shares_texts_out(tmp_path: Path, more: list[str]) -> None:
    """The command line writes what it writes in one process."""
    outs = by_texts(tmp_path, ["compress", "--keep-params", ".6", *more])
    one, two = (tensorlrf.load(out).state_dict() for out in outs)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=ATOL)


@pytest.mark.slow
def test_torchrun_sums_up_moments_of_texts(tmp_path: Path) -> None:
    outs = by_texts(tmp_path, ["calibrate", "--threads", "1"], ".safetensors")
    one, two = (Moments.load(out) for out in outs)
    assert_same(one, two, 1e-12)  # float64, in another order
    assert len(list(tmp_path.glob("*"))) == len([*outs, "bert", "texts.txt"])
    assert not list(tmp_path.glob(".*"))


def by_texts(folder: Path, command: list[str], suffix: str = "") -> list[Path]:
    """What a command makes of a model and texts, in one process and in two that torchrun starts."""
    source, texts = bert_folder(folder / "bert"), folder / "texts.txt"
    lines = (" ".join(f"w{(7 * k + 5 * j * j) % 36}" for j in range(20)) for k in range(64))
    texts.write_text("\n".join(lines))
    command = [
        "-m", "tensorlrf", *command, str(source), "--text", str(texts), "--batch-size", "4",
        "--tokens", "32", "-o",
    ]  # fmt: skip
    found = []
    for arguments in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]):
        found.append(folder / f"out{len(arguments)}{suffix}")
        done = subprocess.run(
            [sys.executable, *arguments, *command, str(found[-1])], cwd=ROOT, env=environment(),
            capture_output=True, text=True, timeout=TIMEOUT, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        assert done.stdout.count("written to") == 1
    return found
