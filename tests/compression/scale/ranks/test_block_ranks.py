"""From block to block, ranks with batches of their own each make what one process makes of all of
them, to rounding: sums are added rank by rank."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import tensorlrf
from tensorlrf.files.job import job_folder
from tests.compression.scale.blocks.networks import contents, ids, net, on_meta, saved
from tests.compression.scale.ranks.processes import TIMEOUT, start, values

# Batches are few.
pytestmark = pytest.mark.filterwarnings("ignore::tensorlrf.errors.CalibrationWarning")

KINDS: dict[str, tuple[list[int], dict[str, Any]]] = {
    "original": ([3, 1], {}),
    "prefix": ([0, 4], {"inputs": "prefix", "memory_limit": 1 << 24}),
    "independent": ([2, 2], {"inputs": "independent", "holdout": 0.0}),
}


def alone(source: Path, out: Path, **given: Any) -> Any:
    """In one process."""
    return tensorlrf.compress_checkpoint(
        source, out, keep_params=0.5, calibration=ids(), model=on_meta(net(blocks=2)), threads=1,
        progress=False, **given,
    )  # fmt: skip


@dataclass
class Made:
    """What two ranks have made of several calls, in turn: call by call, rank by rank.

    folder  with their outputs
    """

    folder: Path
    found: dict[str, list[Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("blocks")
    source = str(saved(net(blocks=2), folder / "a.safetensors"))
    calls: dict[str, list[Any]] = {
        kind: [source, str(folder / kind), counts, [given, given]]
        for kind, (counts, given) in KINDS.items()
    }
    own, out = calls["original"], str(folder / "out")
    calls |= {
        "again": own,
        "shared out otherwise": [*own[:2], [2, 2], own[3]],
        "apart": [source, out, [2, 2], [{"inputs": "prefix"}, {"holdout": 0.2}]],
        "without": [source, out, [2, 2], [{}, {"calibration": None}]],
        "nothing": [source, out, [0, 0], [{}, {}]],
        "fails": [source, out, [3, 1], [{"fails": 4}, {"fails": 4}]],
        "others": [source, out, [2, 2], [{}, {}]],
        "goes on": [source, out, [3, 1], [{}, {}]],
    }
    given = [["by_blocks", *one] for one in calls.values()]
    found = values(2, folder / "calls", "several", given)
    return Made(folder, dict(zip(calls, map(list, zip(*found, strict=True)), strict=True)))


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_fit_as_one_process(made: Made, kind: str, tmp_path: Path) -> None:
    first, second = made.found[kind]
    assert first == second
    report = alone(made.folder / "a.safetensors", tmp_path / "out", **KINDS[kind][1])
    assert first["layers"] == [row.name for row in report.layers]
    assert first["bytes"] == report.bytes_after
    one, other = (tensorlrf.load(p, net(blocks=2)) for p in (tmp_path / "out", made.folder / kind))
    with torch.no_grad():
        for batch in ids(2, seed=5):
            # In float32, with sums over batches in another order.
            torch.testing.assert_close(other(batch), one(batch), rtol=1e-4, atol=1e-4)
    assert not job_folder(made.folder / kind, as_folder=True).exists()


def test_a_run_that_ended_early_goes_on(made: Made) -> None:
    """On as many ranks with the same shares, to the same bytes; with others it is another run."""
    assert all(told[1] == "it fails" for told in made.found["fails"])
    for told in made.found["others"]:
        assert told[1].endswith("restart=True") or "rank 0 failed" in told[1]
        assert "batches was [3, 1], is [2, 2]" in told[1]
    for report in made.found["goes on"]:
        assert 0 < report["resumed"] < len(report["layers"])
    assert contents(made.folder / "out") == contents(made.folder / "original")


def test_a_run_that_has_ended_says_so(made: Made) -> None:
    first, second = made.found["again"]
    assert first == second
    assert first["resumed"] == len(first["layers"])
    for told in made.found["shared out otherwise"]:
        assert "is not what this call makes" in told[1]


def test_ranks_that_disagree_are_told_before_any_work(made: Made) -> None:
    for told in made.found["apart"]:
        assert told[0] == "GroupError"
        assert "inputs is 'prefix' on rank 0 and 'original' on rank 1" in told[1]
        assert "holdout is 0.1 on rank 0 and 0.2 on rank 1" in told[1]
    for told in made.found["without"]:
        assert told[0] == "GroupError"
        assert "calibrated is True on rank 0 and False on rank 1" in told[1]
    for told in made.found["nothing"]:
        assert "on every rank, yields nothing" in told[1]


@pytest.mark.slow
def test_a_rank_that_is_killed(tmp_path: Path) -> None:
    """The other one ends with an error; the same call goes on, to the same bytes."""
    source = saved(net(blocks=2), tmp_path / "a.safetensors")
    given: list[Any] = [[3, 1], [{}, {}]]
    values(2, tmp_path / "whole calls", "by_blocks", str(source), str(tmp_path / "whole"), *given)
    for victim in (1, 0):
        out = tmp_path / f"out{victim}"
        call = [str(source), str(out)]
        ranks = start(2, tmp_path / f"killed{victim}", "killed_in_blocks", *call, [3, 1], victim)
        kind, _, seconds = ranks[1 - victim].value()
        assert ranks[victim].process.wait(TIMEOUT) == -9
        assert kind == "GroupError"
        assert seconds < 30
        found = values(2, tmp_path / f"again{victim}", "by_blocks", *call, *given)
        assert found[0] == found[1]
        assert found[0]["resumed"] > 0
        assert contents(out) == contents(tmp_path / "whole")
