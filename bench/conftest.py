"""What all suites share: the device under test, and where results go.

    pytest bench/test_linear.py                                 a table on the screen
    pytest bench/test_linear.py --results bench/results/cpu     and linear.json, linear.md
    pytest bench/test_linear.py --device cuda --results DIR     DIR/<name of the GPU>/...

A row says what it is in `benchmark.extra_info`: "case" (rows of one case are compared with each
other), and "path" or "peer". The row called "dense", or else the one of a peer, is the base of the
ratios. No host name is written: rows are kept by what they measure, on a device by its model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.report import Row, machine, slug, write_results


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tensorlrf")
    group.addoption("--device", default="cpu", choices=["cpu", "cuda"])
    group.addoption("--results", default=None, metavar="DIR", help="write JSON and tables here")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def dtype(device: torch.device) -> torch.dtype:
    """float32 on a CPU; what networks run in on a GPU."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def pytest_sessionfinish(session: pytest.Session) -> None:
    folder = session.config.getoption("--results")
    benchmarks = getattr(session.config, "_benchmarksession", None)
    if folder is None or benchmarks is None:
        return
    target = Path(folder)
    if session.config.getoption("--device") == "cuda":
        target = target / slug(torch.cuda.get_device_name())
    suites: dict[str, list[Row]] = {}
    for b in benchmarks.benchmarks:
        if b.has_error or not b.stats.rounds:
            continue
        stem = Path(b.fullname.split("::")[0]).stem.removeprefix("test_")
        suites.setdefault(stem, []).append(_row(b))
    for stem, rows in suites.items():
        write_results(target, stem, rows, machine(session.config.getoption("--device")))


def _row(b: Any) -> Row:
    info = dict(b.extra_info)
    return Row(
        case=str(info.pop("case", b.group or b.name)),
        variant=str(info.pop("path", None) or info.pop("peer", None) or b.name),
        median_s=b.stats.median,
        min_s=b.stats.min,
        rounds=b.stats.rounds,
        info=info,
    )
