"""Result files, tables and rows of docs/kernels.md from the rows of a harvest that never was."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bench.harvest import merge
from bench.harvest.journal import Journal
from bench.kernel_table import BEGIN, END, KERNELS, NOT_TIMED
from bench.report import Row
from tensorlrf_kernels.launches import LaunchConfig

MACHINE = {"device": "Tiny GPU", "torch": "2.11", "triton": "3.6.0", "commit": "abc"}
LAUNCH = LaunchConfig("decode", {"BM": 16, "BN": 32}, 4, 3, 132, cooperative=True)
CASE = "llama3-8b 4096x4096, M=16"


def time(variant: str, seconds: float, case: str = CASE, **info: Any) -> dict[str, Any]:
    row = Row(case, variant, seconds, seconds, 0, info)
    return {"phase": "time", "op": "lowrank_linear", "kind": "time", "time": asdict(row)}


def outcome(case: str, how: str) -> dict[str, Any]:
    return {"phase": "time", "case": case, "kind": "outcome", "outcome": how, "reason": ""}


FUSED = {"path": "fused", "M": 16, "rank": 64, "launch": "decode", "over_floor": 1.5}
ROWS = [
    {"kind": "machine", "machine": MACHINE},
    {"kind": "constant", "name": "bandwidth", "value": 4.2e12},
    time("dense", 8e-6), time("chain r=64", 3e-6), time("fused r=64", 2e-6, **FUSED),
    outcome(CASE, "done"), outcome("kron", "crashed"), outcome("blr", "not reached"),
    {"kind": "check", "phase": "check", "case": "kron_linear ragged", "property": "forward",
     "ok": True, "worse": True, "dtype": "float16", "error": 3e-4, "chain_error": 1e-4},
    {"kind": "check", "phase": "check", "case": "kron_linear ragged", "property": "graph",
     "ok": False, "times": 20, "different": 3},
    {"kind": "test", "phase": "test", "test": "tests/gpu/a.py::b", "outcome": "passed"},
    {"kind": "test", "phase": "test", "test": "tests/gpu/a.py::c", "outcome": "failed",
     "reason": "the reason"},
    {"kind": "tuned", "op": "lowrank_linear", "direction": "forward", "dtype": "bfloat16",
     "bucket": "16x4096x4096x64", "launch": LAUNCH.to_json(), "heuristic_s": 3e-6, "best_s": 2e-6},
]  # fmt: skip


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    page = tmp_path / "kernels.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    given = {"results": "results", "tables": "tables", "page": "kernels.md"}
    options = [word for k, v in given.items() for word in (f"--{k}", str(tmp_path / v))]
    return [str(tmp_path / "harvest"), *options]


def harvest(folder: Path, told: list[dict[str, Any]]) -> None:
    journal = Journal(folder)
    for row in told:
        journal.row(row)
    journal.close()


def test_everything_that_was_measured_is_written(
    tmp_path: Path, folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    harvest(tmp_path / "harvest", ROWS)
    with (tmp_path / "harvest" / "rows.jsonl").open("a") as file:
        file.write('{"kind": "time", "ti')  # as a killed run leaves it
    assert merge.main(folders) == 0
    result = json.loads((tmp_path / "results" / "tiny-gpu" / "kernels.json").read_text())
    assert [row["variant"] for row in result["rows"]] == ["dense", "chain r=64", "fused r=64"]
    assert result["machine"]["constants"] == {"bandwidth": 4.2e12}
    assert result["machine"]["failed"] == ["kron"]
    assert result["machine"]["not_reached"] == ["blr"]
    page = (tmp_path / "kernels.md").read_text()
    assert "| Tiny GPU | 1.50x (1.50x) | 4.00x (4.00x) | 1.50 (1.50) |" in page
    assert page.count(NOT_TIMED) == len(KERNELS) - 1
    table = json.loads((tmp_path / "tables" / "tiny-gpu-triton-3.6.json").read_text())
    found = table["launches"]["lowrank_linear.forward"]["bfloat16"]["16x4096x4096x64"]
    assert LaunchConfig.from_json(found) == LAUNCH
    checks = json.loads((tmp_path / "results" / "tiny-gpu" / "checks.json").read_text())
    assert checks["tests"] == {"passed": 1, "failed": 1}
    assert checks["failed_tests"][0]["reason"] == "the reason"
    lines = (tmp_path / "results" / "tiny-gpu" / "checks.md").read_text()
    assert "| kron_linear ragged | forward | yes | float16 | 3.00e-04 | 1.00e-04 |" in lines
    assert "| kron_linear ragged | graph | no |" in lines
    said = capsys.readouterr().out
    assert "does not hold: kron_linear ragged, graph" in said
    assert "worse than library products: kron_linear ragged, forward" in said
    assert "1.50x over the heuristic" in said


def test_what_an_earlier_run_measured_stays(tmp_path: Path, folders: list[str]) -> None:
    harvest(tmp_path / "harvest", ROWS)
    assert merge.main(folders) == 0
    harvest(tmp_path / "harvest", [ROWS[0], time("dense", 5e-6, "another"), time("chain", 1e-6)])
    assert merge.main(folders) == 0
    result = json.loads((tmp_path / "results" / "tiny-gpu" / "kernels.json").read_text())
    # Times of one case are of one run: those of two are not compared.
    assert [(row["case"], row["variant"]) for row in result["rows"]] == [
        ("another", "dense"), (CASE, "chain")
    ]  # fmt: skip
    assert result["machine"]["earlier"] == ["abc"]


def test_nothing_is_made_of_nothing(
    tmp_path: Path, folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    harvest(tmp_path / "harvest", ROWS[1:])
    assert merge.main(folders) == 2
    assert "no row says on which machine" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
    assert "old" in (tmp_path / "kernels.md").read_text()
    harvest(tmp_path / "harvest", ROWS[:1])
    assert merge.main(folders) == 0
    assert not (tmp_path / "results").exists()
    assert not (tmp_path / "tables").exists()
    assert (tmp_path / "kernels.md").read_text().count(NOT_TIMED) == len(KERNELS)
