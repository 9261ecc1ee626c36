"""The GPU tests in several processes: each test in one of them, and no failure lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import gpu_check
from tests.gpu.conftest import belongs
from tests.processes import python

SUITE = """
import warnings
import pytest
warnings.warn("a warning is " + "long " * 400)
pytestmark = pytest.mark.gpu
@pytest.mark.parametrize("k", range(9))
def test_number(k):
    assert k != {wrong}, "the reason is " + "long " * 400 + "and here"
"""


BARE = """
import sys
import pytest

for name in ("tensorly", "typer", "transformers", "matplotlib", "rich", "scipy"):
    sys.modules[name] = None

class Bare:
    def pytest_configure(self):  # its plugin is gone through before that
        sys.modules["hypothesis"] = None

import bench.gpu, bench.tune
from bench.harvest import __main__, check, compile, environment, merge, serve, test, time, tune
given = ["-q", "-p", "no:hypothesispytest", "-p", "no:cacheprovider", "-m", "gpu", "tests/gpu"]
sys.exit(pytest.main([*given, "--collect-only"], plugins=[Bare()]))
"""


def test_a_gpu_machine_needs_torch_triton_numpy_and_pytest_alone() -> None:
    done = python("-c", BARE)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_every_test_is_in_one_part() -> None:
    names = [f"tests/gpu/test_a.py::test_b[{k}]" for k in range(200)]
    parts = [[name for name in names if belongs(name, f"{k}/7")] for k in range(7)]
    assert sorted(name for part in parts for name in part) == sorted(names)
    assert all(10 < len(part) < 60 for part in parts)


def run(folder: Path, wrong: int, processes: int) -> int:
    suite = folder / "test_suite.py"
    suite.write_text(SUITE.format(wrong=wrong))
    (folder / "conftest.py").write_text("from tests.gpu.conftest import *\n")
    logs = str(folder / "logs")
    return gpu_check.main([str(suite), "--processes", str(processes), "--logs", logs])


def test_what_fails_is_printed_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, wrong=4, processes=2) == 1
    printed = capsys.readouterr().out
    assert "test_number[4]" in printed
    assert "and here" in printed
    assert "1 failed, 8 passed" in printed
    assert len(printed) < 3000


def test_all_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, wrong=-1, processes=1) == 0
    assert "9 passed" in capsys.readouterr().out


def test_a_run_that_broke_off_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test_suite.py").write_text("import no_such_module\n")
    logs = str(tmp_path / "logs")
    given = [str(tmp_path / "test_suite.py"), "--processes", "1", "--logs", logs]
    assert gpu_check.main(given) == 1
    assert "no_such_module" in capsys.readouterr().out


def test_nothing_ran_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test_suite.py").write_text("def test_a():\n    pass\n")
    given = [str(tmp_path / "test_suite.py"), "--processes", "1"]
    assert gpu_check.main(given) == gpu_check.NOTHING_RAN
    assert "nothing ran" in capsys.readouterr().out
