"""What the workers of a harvest do, as far as a CPU allows."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import tensorlrf_kernels.tune as searching
from bench import constants, kernel_cases, shapes
from bench.clock import Times
from bench.harvest import check, environment, plan, tune
from bench.harvest import time as timing
from bench.harvest.__main__ import ending, start
from bench.harvest.check import CHECKS, Check
from bench.harvest.driver import Driver
from bench.harvest.journal import Journal, rows
from bench.harvest.plan import Phase, Task
from bench.kernel_cases import Case, Way
from bench.report import Row
from tensorlrf.ops._profile import H200 as PROFILE
from tensorlrf_kernels import launches
from tensorlrf_kernels.launches import LaunchConfig, Launched
from tests.processes import printed, python

# ---- the plan is what the workers know ----------------------------------------------------------


def test_every_check_has_its_operands() -> None:
    (phase,) = plan.chosen("check", plan.phases(16))
    assert {task.case for task in phase.tasks} == {" ".join(name) for name in CHECKS}


def test_every_timing_is_a_case_of_the_benchmark_and_has_the_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = timing.cases()
    assert [timed.case for timed in plan.TIMINGS if timed.case not in known] == []
    assert 25 <= len(plan.TIMINGS) <= 35
    monkeypatch.setattr(kernel_cases, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(kernel_cases, "profiled", lambda: PROFILE)
    case = timing.case_of("linear llama3-8b 4096x4096 M=16")
    assert list(case.ways) == [
        "dense",
        *(f"{p} r={r}" for r in (64, 256) for p in ("chain", "fused")),
    ]
    assert all(case.info[name]["floor_us"] for name in case.ways if name != "dense")
    assert set(case.exact) == set(case.ways) - {"dense"}


def test_everything_to_tune_is_tuned_by_the_long_run_too() -> None:
    ops = Counter(tune.problem_of(one)[0] for one in plan.TUNINGS)
    assert ops == Counter(one.op for one in plan.TUNINGS)
    with pytest.raises(LookupError, match="no problem of"):
        tune.problem_of(plan.Tuning("kron_linear", "1x2"))


# ---- checks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["kron_linear", "blr_linear", "tt_linear", "mttkrp", "tt_embedding"])
def test_an_op_that_is_its_own_reference_passes(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_cases, "DEVICE", torch.device("cpu"))
    one = check.check_of(f"{op} ragged")
    assert check.forward(one)["ok"]
    found = check.backward(one)
    # On a CPU sums in float16 are rounded more often, and gradients of few entries suffer first.
    assert float(str(found["error"])) < 2e-2
    assert check.repeated(one, 2)["ok"]


@pytest.mark.parametrize("how", ["off", "nan", "unwritten"])
def test_what_is_wrong_is_seen(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_cases, "DEVICE", torch.device("cpu"))
    right = check.check_of("kron_linear ragged")

    def wrong(*operands: torch.Tensor) -> torch.Tensor:
        y = right.reference(*operands)
        if how == "off":
            return y * 1.01
        return y.index_fill(0, torch.tensor([3]), float("nan") if how == "nan" else 0.0)

    found = check.forward(Check(right.operands, wrong, right.reference))
    assert not found["ok"]
    json.dumps(found)
    assert not check.backward(Check(right.operands, wrong, right.reference))["ok"]
    told: list[dict[str, Any]] = []
    monkeypatch.setitem(
        CHECKS, ("kron_linear", "ragged"), lambda: Check(right.operands, wrong, right.reference)
    )
    with pytest.raises(AssertionError, match="forward"):
        check.handle("kron_linear ragged", 9.0, (), told.append)
    assert [line["row"]["property"] for line in told] == [
        "forward", "backward", "repeated", "two streams", "graph", "by our kernels"
    ]  # fmt: skip


def test_a_result_that_changes_from_call_to_call_is_seen() -> None:
    one = Check(lambda: [torch.ones(3)], lambda x: x * torch.rand(()), lambda x: x)
    assert check.repeated(one, 5) == {"ok": False, "times": 5, "different": 5}


def failing(config: LaunchConfig) -> Launched:
    return Launched("kron_linear", "NVIDIA H200", torch.float16, config)


def test_a_library_product_in_the_place_of_a_kernel_is_no_measurement_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = LaunchConfig("forward", {"BM": 16})
    rows = [Row("a case", name, 1e-6, 1e-6, 0) for name in ("dense", "chain", "fused r=64")]

    class Fallen(Case):
        def measure(self, seconds: float) -> list[Row]:
            launches._failed.add(failing(config))
            return rows

    monkeypatch.setattr(timing, "case_of", lambda _: Fallen("a case", {}))
    monkeypatch.setattr(launches, "_failed", set())
    monkeypatch.setattr(launches, "_apart", {failing(config)})
    told: list[dict[str, Any]] = []
    with pytest.raises(RuntimeError, match="in the place of kron_linear forward BM=16"):
        timing.handle("a case", 9.0, (), told.append)
    kept = [line["row"]["time"]["variant"] for line in told if "time" in line["row"]]
    assert kept == ["dense", "chain"]
    assert check.by_kernels()["ok"] is False
    timing.served.forget()
    assert check.by_kernels() == {"ok": True, "library": [], "apart": []}


# ---- the other phases, with numbers in the place of a GPU's ------------------------------------


def rows_of(handle: Any, case: str) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    handle(case, 9.0, (), told.append)
    return [json.loads(json.dumps(line))["row"] for line in told]


def test_times_become_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_cases, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(kernel_cases, "profiled", lambda: PROFILE)
    monkeypatch.setattr(
        kernel_cases, "clock", lambda ways, seconds: dict.fromkeys(ways, Times(2e-6, 1e-6, 1e-6))
    )
    monkeypatch.setattr(shapes, "KERNEL_LAYERS", (("tiny", 96, 96),))
    case = kernel_cases.linear_case("tiny", 96, 96, 8)
    monkeypatch.setattr(timing, "case_of", lambda _: timing.narrowed(case, (32,)))
    *timed, said = rows_of(timing.handle, "tiny")
    assert [row["time"]["variant"] for row in timed] == ["dense", "chain r=32", "fused r=32"]
    assert all(row["time"]["median_s"] == 1e-6 for row in timed)
    assert timed[2]["time"]["info"]["error"] < 2e-2
    assert said["say"].startswith("tiny 96x96, M=8: dense 1.0, chain r=32 1.0, fused r=32 1.0 us (")


def test_libraries_are_tuned_while_they_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def clock(ways: dict[str, Any], seconds: float) -> dict[str, Times]:
        seen.append(torch.backends.cudnn.benchmark)
        return dict.fromkeys(ways, Times(2e-6, 1e-6, 1e-6))

    monkeypatch.setattr(kernel_cases, "clock", clock)
    before = torch.backends.cudnn.benchmark
    Case("a case", {"dense": Way(len, list, 1)}, info={"dense": {}}).measure(0.1)
    assert (seen, torch.backends.cudnn.benchmark) == ([True], before)


def test_the_fastest_launch_becomes_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_cases, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(tune, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(tune, "compilers", lambda: None)
    monkeypatch.setattr(searching, "verdict", lambda *_: "")
    monkeypatch.setattr(
        tune, "time_launch", lambda op, direction, config, *_: 1e-6 * config.num_stages
    )
    *timed, best = rows_of(tune.handle, "kron_linear 8192x64x64x64x64x2")
    assert best["kind"] == "tuned"
    assert best["best_s"] == min(row["seconds"] for row in timed)
    assert best["heuristic_s"] == timed[0]["seconds"]
    assert best["timed"] == len(timed) > 3
    assert LaunchConfig.from_json(best["launch"]).num_stages == 1
    assert (best["bucket"], best["dtype"]) == ("8192x64x64x64x64x2", "bfloat16")


def test_constants_become_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ceilings", lambda: {"bandwidth": lambda: 4.2e12})
    monkeypatch.setattr(constants, "rate", lambda dtype: 7e14)
    monkeypatch.setattr(constants, "shares", lambda dtype, found: {"library": found["bandwidth"]})
    monkeypatch.setattr(constants, "barrier", lambda: 1e-6)
    monkeypatch.setattr(environment, "driver", dict)
    found = [*rows_of(environment.handle, "ceilings"), *rows_of(environment.handle, "shares")]
    values = {row["name"]: row["value"] for row in found if row["kind"] == "constant"}
    assert values == {"bandwidth": 4.2e12, "rate_float16": 7e14, "library": 4.2e12}
    assert rows_of(environment.handle, "barrier")[0]["value"] == 1e-6


# ---- a worker's process -------------------------------------------------------------------------

SERVED = """
import sys, types
def handle(case, seconds, skip, tell):
    print("chatter")
    if case == "broken":
        raise ValueError("no such kernel\\nand more")
    tell({"row": {"case": case, "seconds": seconds, "skip": skip}})
sys.modules["bench.harvest.fake"] = types.SimpleNamespace(handle=handle)
from bench.harvest.serve import main
sys.exit(main(["fake"]))
"""


def test_a_worker_tells_rows_and_reasons_and_nothing_else() -> None:
    asked = [{"case": case, "seconds": 2.0, "skip": ["a"]} for case in ("one", "broken", "two")]
    done = python("-c", SERVED, said="".join(json.dumps(each) + "\n" for each in asked))
    assert done.returncode == 0
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"ready": "fake"},
        {"row": {"case": "one", "seconds": 2.0, "skip": ["a"]}}, {"done": "one"},
        {"failed": "ValueError: no such kernel"}, {"done": "broken"},
        {"row": {"case": "two", "seconds": 2.0, "skip": ["a"]}}, {"done": "two"},
    ]  # fmt: skip
    assert done.stderr.count("chatter") == 3
    assert "Traceback" in done.stderr


SUITE = """
import pytest
pytestmark = pytest.mark.gpu
def test_well(): pass
def test_ill(): assert False, "the reason"
def test_left(): assert False, "was begun before"
def test_compiled_whole(): assert False, "takes minutes"
def test_sticky(): raise RuntimeError("CUDA error: an illegal memory access was encountered")
def test_behind(): pass
"""
TESTED = """
import json, sys
from bench.harvest.test import LEFT_OUT, run
skip = [name for name in sys.argv[2:]]
run([sys.argv[1], "-k", LEFT_OUT, "-c", "/dev/null"], skip,
    lambda line: print(json.dumps(line), flush=True, file=sys.stderr))
"""


def test_each_test_is_told_and_one_that_breaks_the_gpu_ends_the_process(tmp_path: Path) -> None:
    suite = tmp_path / "test_suite.py"
    suite.write_text(SUITE)

    def tested(*skip: str) -> tuple[int, dict[str, str], list[str]]:
        done = python("-c", TESTED, suite, *skip, cwd=tmp_path)
        lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
        found = [line["row"] for line in lines if "row" in line]
        return (
            done.returncode,
            {row["test"].partition("::")[2]: row["outcome"] for row in found},
            [line["begin"] for line in lines if "begin" in line],
        )

    code, outcomes, begun = tested("test_suite.py::test_left")
    assert code == 3
    assert outcomes == {"test_well": "passed", "test_ill": "failed", "test_sticky": "failed"}
    code, outcomes, _ = tested("test_suite.py::test_left", *begun)
    assert (code, outcomes) == (0, {"test_behind": "passed"})


@pytest.mark.slow
def test_the_real_workers_run_under_the_driver(tmp_path: Path) -> None:
    """Where there is no GPU every case fails, with its reason, and the launches are compiled."""
    journal = Journal(tmp_path)
    phases = (
        Phase("environment", 40.0, (Task("ceilings", "ceilings", 40.0),)),
        Phase("check", 40.0, (Task("mttkrp", "mttkrp ragged", 40.0),)),
        Phase("time", 40.0, (Task("kron", plan.TIMINGS[0].case, 40.0),)),
        Phase("tune", 40.0, (Task("tune", str(plan.TUNINGS[0]), 40.0),)),
        Phase("test", 60.0, (Task("0", "0/2", 40.0, again=1),)),
    )
    driver = Driver(phases, start, journal, seconds=220.0, say=print)
    driver.run()
    journal.close()
    outcomes = {one["phase"]: one["outcome"] for one in driver.outcomes}
    gpu = torch.cuda.is_available()
    assert outcomes == dict.fromkeys(outcomes, "done" if gpu else "failed") | {"test": "done"}
    found = list(rows(tmp_path))
    assert {row["property"] for row in found if row["kind"] == "check"} >= {"forward", "graph"}
    tests = [row for row in found if row["kind"] == "test"]
    assert len(tests) > 20
    if not gpu:
        reasons = [one["reason"] for one in driver.outcomes if one["outcome"] == "failed"]
        assert all(re.search("CUDA|cuda|GPU", reason) for reason in reasons), reasons


# ---- the command --------------------------------------------------------------------------------


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = python("-m", "bench.harvest", "--out", out, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "no CUDA GPU is visible" in done.stderr
    assert not out.exists()


def test_the_driver_itself_imports_no_torch() -> None:
    code = "import sys, bench.harvest.__main__; print('torch' in sys.modules)"
    assert printed(code) == "False"


def test_the_end_of_what_is_printed_fits_what_is_kept_of_it() -> None:
    one = {"phase": "test", "case": "x" * 200, "outcome": "crashed", "reason": "y" * 300}
    lines = ending({"rows": 9, "seconds": 520.0, "stopped": "", "phases": {"test": {"crashed": 99}},
                    "not_done": [one] * 99})  # fmt: skip
    assert len("\n".join(lines)) < 12000
    assert lines[-1] == "and 39 more, in summary.json"


def test_a_case_in_one_line() -> None:
    timed = [
        Row("a case", "dense", 8e-6, 8e-6, 0),
        Row("a case", "fused", 2e-6, 2e-6, 0, {"floor_us": 1.5}),
    ]
    assert timing.in_words(timed) == "a case: dense 8.0, fused 2.0 us (floor 1.5)"
    case = Case("a case", {n: Way(len, list, 1) for n in ("compiled dense", "chain", "fused r=64")})
    assert list(timing.narrowed(case, (32,)).ways) == ["chain"]
