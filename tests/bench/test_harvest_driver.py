"""A whole harvest with workers that hang, crash, and tell half of what they know."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from bench.harvest import driver as driving
from bench.harvest import plan
from bench.harvest.driver import Driver
from bench.harvest.journal import LOG, SUMMARY, Journal, rows
from bench.harvest.plan import Phase, Task
from bench.harvest.process import Worker

FAKE = Path(__file__).with_name("harvest_worker.py")


def start(phase: str, op: str) -> Worker:
    return Worker([sys.executable, "-S", str(FAKE), op], dict(os.environ), str(FAKE.parent))


def harvested(folder: Path, phases: tuple[Phase, ...]) -> tuple[Driver, list[dict[str, Any]]]:
    journal = Journal(folder)
    seconds = sum(phase.seconds for phase in phases)
    driver = Driver(phases, start, journal, seconds=seconds, say=lambda _: None)
    driver.run()
    journal.close()
    return driver, list(rows(folder))


def tasks(*cases: str, seconds: float = 0.0, op: str = "", again: int = 0) -> tuple[Task, ...]:
    """Those that wait for ever are cut short; the others have time, on a busy machine too."""
    short = ("hang", "deaf", "parts")
    return tuple(
        Task(op or case, case, seconds or (1.5 if case.startswith(short) else 9.0), again)
        for case in cases
    )


def outcomes(driver: Driver) -> dict[str, str]:
    return {one["case"]: one["outcome"] for one in driver.outcomes}


@pytest.fixture(autouse=True)
def _no_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driving, "RESERVE", 0.3)


def test_whatever_the_workers_do_the_run_ends_and_keeps_their_rows(tmp_path: Path) -> None:
    phases = (
        # Of one op, since processes are asked in the order in which they are ready.
        Phase("zeroth", 2.0, tasks("hang 0", "row 0", seconds=9.0, op="zero")),
        Phase("first", 9.0, tasks("row 1", "hang 1", "exit 1", "signal 1", "half 1", "noise 1"), 6),
        Phase("second", 15.0, (*tasks("row 2", "fail 2", "exit 2", "row 3", op="one"),
                              *tasks("deaf", op="two"), *tasks("parts", op="three", again=3)), 3),
        Phase("third", 9.0, (*tasks("row 5"), *tasks("row 6", op="dies at once"))),
    )  # fmt: skip
    driver, told = harvested(tmp_path, phases)
    assert outcomes(driver) == {
        "row 1": "done", "hang 1": "timed out", "exit 1": "crashed", "signal 1": "crashed",
        "half 1": "crashed", "noise 1": "done", "row 2": "done", "fail 2": "failed",
        "exit 2": "crashed", "row 3": "done", "deaf": "timed out", "c": "crashed",
        "e": "timed out", "parts": "done", "hang 0": "cut off", "row 0": "not reached",
        "row 5": "done", "row 6": "crashed",
    }  # fmt: skip
    values = {row["value"] for row in told if row["kind"] == "number"}
    assert values == {
        "row 1", "hang 1", "exit 1", "signal 1", "half 1", "noise 1", "row 2", "exit 2", "row 3",
        *"abdf", "hang 0", "row 5",
    }  # fmt: skip
    reasons = {one["case"]: one["reason"] for one in driver.outcomes}
    assert reasons["exit 1"] == "exit code 7"
    assert "SIGSEGV" in reasons["signal 1"]
    assert """its last line was cut off: '{"row": {"kind": "nu'""" in reasons["half 1"]
    assert reasons["fail 2"] == "ValueError: no such kernel"
    assert "SIGABRT" in reasons["c"]
    log = (tmp_path / LOG).read_bytes()
    assert b"a library says hello\n" in log
    assert log.count(b"and so on\n") == 20000
    summary = json.loads((tmp_path / SUMMARY).read_text())
    assert summary["phases"]["first"] == {"done": 2, "timed out": 1, "crashed": 3}
    assert {one["case"] for one in summary["not_done"]} == {
        case for case, outcome in outcomes(driver).items() if outcome != "done"
    }
    assert not summary["running"]
    assert len(list(tmp_path.iterdir())) <= 8


def test_time_that_a_phase_leaves_goes_to_the_next(tmp_path: Path) -> None:
    slow = Phase("second", 0.4, tasks("hang", seconds=1.2))
    driver, _ = harvested(tmp_path, (Phase("first", 9.6, tasks("row")), slow))
    assert outcomes(driver) == {"row": "done", "hang": "timed out"}


def test_cases_of_an_op_share_a_process_until_it_breaks(tmp_path: Path) -> None:
    started = []

    def counting(phase: str, op: str) -> Worker:
        started.append(op)
        return start(phase, op)

    cases = tasks("row 1", "row 2", "exit", "row 3", op="one")
    journal = Journal(tmp_path)
    Driver([Phase("only", 9.0, cases)], counting, journal, seconds=9.0, say=lambda _: None).run()
    journal.close()
    assert started == ["one", "one"]


def test_imports_are_no_part_of_a_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driving, "STARTING", 2.5)
    cases = (*tasks("row 1", seconds=0.9, op="slow"), *tasks("row 2", "row 3", op="never ready"))
    driver, _ = harvested(tmp_path, (Phase("only", 4.5, (*cases, *tasks("row 4"))),))
    assert outcomes(driver) == {
        "row 1": "done", "row 2": "crashed", "row 3": "not reached", "row 4": "done"
    }  # fmt: skip
    assert "it was not ready in time" in {o["case"]: o["reason"] for o in driver.outcomes}["row 2"]


def test_an_op_whose_process_broke_gets_another_though_later_phases_are_prepared(
    tmp_path: Path,
) -> None:
    later = Phase("later", 9.0, tuple(Task(f"{k}", f"row {k}", 9.0) for k in range(9)))
    driver, _ = harvested(
        tmp_path, (Phase("only", 9.0, tasks("row", "exit", "row again", op="one")), later)
    )
    assert set(outcomes(driver).values()) == {"done", "crashed"}
    assert outcomes(driver)["row again"] == "done"


def test_a_signal_ends_the_run_and_leaves_it_readable(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    phases = [Phase("only", 30.0, tasks("row 1", "hang", "row 2", seconds=30.0, op="one"))]
    driver = Driver(phases, start, journal, seconds=30.0, say=lambda _: None)
    before = signal.signal(signal.SIGUSR1, lambda *_: driver.stop("SIGUSR1"))

    def interrupt() -> None:
        while all(row.get("value") != "hang" for row in rows(tmp_path)):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR1)

    meanwhile = threading.Thread(target=interrupt, daemon=True)
    meanwhile.start()
    try:
        driver.run()
    finally:
        signal.signal(signal.SIGUSR1, before)
        meanwhile.join()
        journal.close()
    assert outcomes(driver) == {"row 1": "done", "hang": "cut off", "row 2": "not reached"}
    assert {row.get("value") for row in rows(tmp_path)} >= {"row 1", "hang"}
    assert json.loads((tmp_path / SUMMARY).read_text())["stopped"] == "SIGUSR1"


def test_no_process_is_left(tmp_path: Path) -> None:
    harvested(tmp_path, (Phase("only", 1.0, tasks("deaf", "hang", seconds=0.4), 2),))
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert str(FAKE) not in running.stdout


def test_a_row_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.row({"kind": "number", "value": 1})
    journal.close()
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"kind": "numb')
    assert list(rows(tmp_path)) == [{"kind": "number", "value": 1}]


def test_the_plan_is_what_was_agreed() -> None:
    phases = plan.phases(16)
    assert {phase.name: phase.seconds for phase in phases} == {
        "environment": 15, "compile": 55, "check": 60, "time": 200, "tune": 90, "test": 105
    }  # fmt: skip
    assert sum(phase.seconds for phase in phases) == plan.SECONDS
    assert all(phase.side_by_side == 1 for phase in phases if phase.name in ("time", "tune"))
    for phase in phases:
        assert len({task.case for task in phase.tasks}) == len(phase.tasks)
    assert [phase.name for phase in plan.chosen("tune, time", phases)] == ["time", "tune"]
    with pytest.raises(ValueError, match="'ab' is none of environment, compile"):
        plan.chosen("time,ab", phases)
