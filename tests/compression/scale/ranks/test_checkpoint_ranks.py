"""A checkpoint that is shared out over ranks has the bytes of one rank, whoever dies on the way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import tensorlrf
from tensorlrf.files.job import job_folder
from tests.compression.scale.ranks.processes import TIMEOUT, start, torchrun, values
from tests.compression.scale.test_checkpoint import contents, net, sharded


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Seven layers."""
    return sharded(net(64), tmp_path / "in")


@pytest.fixture
def whole(source: Path, tmp_path: Path) -> dict[str, bytes]:
    """What one process of one thread makes of them."""
    tensorlrf.compress_checkpoint(source, tmp_path / "whole", keep_params=0.5, threads=1)
    return contents(tmp_path / "whole")


@dataclass
class Made:
    """What two ranks have made of several calls, in turn: rank by rank.

    folder  with their outputs
    """

    folder: Path
    alone: list[Any]
    disagree: list[Any]
    missing: list[Any]
    primitives: list[Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("ranks")
    layer = str(sharded(nn.Sequential(nn.Linear(32, 32)), folder / "layer", shards=1))
    source, other = (str(sharded(net(64, seed=k), folder / f"in{k}")) for k in range(2))
    out, nowhere = str(folder / "out"), str(folder / "nowhere")
    apart = [{}, {"keep_params": 0.4, "threads": 2, "source": other}]
    found = values(
        2, folder / "calls", "several",
        [
            ["checkpoint", layer, str(folder / "layer.safetensors"), [{}, {}]],
            ["checkpoint", source, out, apart],
            ["checkpoint", source, out, [{}, {"source": nowhere}]],
            ["primitives"],
        ],
    )  # fmt: skip
    return Made(folder, *map(list, zip(*found, strict=True)))


def test_ranks_agree_and_add_up(made: Made) -> None:
    for rank, found in enumerate(made.primitives):
        assert found["total"] == [1.0, [[3.0] * 3] * 2]
        assert found["totals"] == [2.0, 1.0]
        assert found["least"] == 4.0
        assert found["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert found["of"] == [1, 1]
        assert found["beside"] == 2
        assert found["alone"]
        assert found["not shared"]
        kind, message, _ = found["disagree"]
        assert kind == "GroupError"
        assert "b is 0 on rank 0 and 1 on rank 1" in message
        kind, message, seconds = found["fails"]
        assert message == ("no such thing" if rank else "rank 1 failed: no such thing")
        assert seconds < 10


@pytest.mark.slow
def test_torchrun_gives_the_bytes_of_one(
    source: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    command = ["-m", "tensorlrf", "compress", str(source), "-o", str(tmp_path / "out"), "--stream"]
    done = torchrun(2, [*command, "--keep-params", ".5"])
    assert done.returncode == 0, done.stderr[-4000:]
    assert contents(tmp_path / "out") == whole
    assert done.stdout.count("written to") == 1
    assert not job_folder(tmp_path / "out", as_folder=True).exists()


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "size", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_a_rank_that_is_killed_loses_its_layer(
    source: Path, whole: dict[str, bytes], tmp_path: Path, victim: int, size: int
) -> None:
    """The other one ends with an error; a run of another number of ranks goes on."""
    out = tmp_path / "out"
    ranks = start(2, tmp_path / "killed", "killed", str(source), str(out), victim)
    kind, message, seconds = ranks[1 - victim].value()
    assert ranks[victim].process.wait(TIMEOUT) == -9
    assert kind == "GroupError"
    # A rank that ends on this machine may take the store with it.
    assert f"rank {victim} is lost" in message or "store of the process group" in message
    assert seconds < 30
    if size == 1:
        report = tensorlrf.compress_checkpoint(source, out, keep_params=0.5, threads=1)
        resumed, layers = report.resumed, len(report.layers)
    else:
        given: list[dict[str, Any]] = [{} for _ in range(size)]
        found = values(size, tmp_path / "again", "checkpoint", str(source), str(out), given)
        assert all(one == found[0] for one in found)
        resumed, layers = found[0]["resumed"], len(found[0]["layers"])
    assert contents(out) == whole
    assert 2 <= resumed < 7
    assert layers == 7


@pytest.mark.slow
def test_elastic_starts_ranks_again(source: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    """One of them is killed in its second layer, once."""
    out = tmp_path / "out"
    arguments = ["-m", "tests.compression.scale.ranks.elastic", str(source), str(out)]
    done = torchrun(2, ["--max-restarts=1", *arguments])
    assert done.returncode == 0, done.stderr[-4000:]
    assert contents(out) == whole
    assert "layers are of an earlier run" in done.stdout


def test_one_layer_for_two_ranks_and_a_file(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    tensorlrf.compress_checkpoint(made.folder / "layer", out, keep_params=0.5, threads=1)
    assert made.alone[0] == made.alone[1]
    assert made.alone[0]["layers"] == ["0"]
    assert out.read_bytes() == (made.folder / "layer.safetensors").read_bytes()


def test_ranks_that_disagree_are_told_before_any_work(made: Made) -> None:
    for kind, message, seconds in made.disagree:
        assert kind == "GroupError"
        for key in ("plan", "threads", "source"):
            assert f"{key} is " in message
        assert seconds < 30
    first, second = made.missing
    assert first[0] == "GroupError"
    assert "rank 1 failed" in first[1]
    assert second[0] == "MissingFileError"
    assert not (made.folder / "out").exists()
