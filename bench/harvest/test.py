"""Sixth phase: the GPU tests, one shard a process, without what the sanitizer and torch.compile
take minutes for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest

from bench.gpu_check import MOST_PRINTED, PYTEST
from bench.harvest.serve import Tell

LEFT_OUT = "not sanitizer and not compiled"
VARIABLE = "TENSORLRF_SHARD"
STICKY = ("CUDA error", "device-side assert", "illegal memory access")
BROKEN = 3


def handle(case: str, seconds: float, skip: Sequence[str], tell: Tell) -> None:
    """A row for each test of the shard `case`, as "3/12", but for those to skip."""
    os.environ[VARIABLE] = case
    run(["tests/gpu", "-k", LEFT_OUT], skip, tell)


def run(arguments: Sequence[str], skip: Sequence[str], tell: Tell) -> None:
    """Run the tests, each told when it begins and how it ended. Raises RuntimeError where pytest
    itself comes to grief."""
    options = [word for word in PYTEST if word not in ("-m", "pytest", "gpu")]
    code = pytest.main(
        [*options, "-m", "gpu", "--tb=short", *arguments], plugins=[_Teller(skip, tell)]
    )
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED,
                    pytest.ExitCode.NO_TESTS_COLLECTED):  # fmt: skip
        raise RuntimeError(f"pytest ended with {code!r}; the log says why")


class _Teller:
    """A plugin."""

    def __init__(self, skip: Sequence[str], tell: Tell) -> None:
        self._skip, self._tell = frozenset(skip), tell

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid not in self._skip]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._tell({"begin": nodeid})

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when != "call" and report.passed:
            return
        text = str(report.longrepr or "") if not report.passed else ""
        row = {
            "kind": "test",
            "test": report.nodeid,
            "outcome": report.outcome,
            "when": report.when,
            "seconds": round(report.duration, 3),
        }
        if text:
            row["reason"] = text[-MOST_PRINTED:]
        if report.failed:
            row["say"] = f"failed: {report.nodeid}"
        self._tell({"row": row})
        if report.failed and any(word in text for word in STICKY):
            os._exit(BROKEN)  # the tests that are left run in a fresh process
