"""What a harvest compiles ahead is what its launches will ask for, to the hash."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.runtime import driver

from bench.fake_driver import FakeDriver
from bench.harvest import check
from bench.harvest import compile as compiling
from bench.harvest.launches import Pointer, distinct, recorded, seen
from tensorlrf_kernels._aot import source_of
from tensorlrf_kernels.chips import H200
from tensorlrf_kernels.launches import Call

pytestmark = pytest.mark.aot


@pytest.fixture
def pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(driver, "_active", FakeDriver(keep=False))


def launched(name: str) -> list[Call]:
    one = check.check_of(name)

    def work() -> None:
        with torch.no_grad():
            one.run(*one.operands())

    return recorded(work, H200)


def real(value: Any) -> Any:
    if not isinstance(value, Pointer):
        return value
    return torch.empty(64, dtype=value.dtype)[value.remainder // value.dtype.itemsize :]


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize("name", ["tt_embedding ragged", "lowrank_linear decode"])
def test_compiled_ahead_is_what_a_launch_takes(name: str) -> None:
    for call in launched(name):
        source, target, options = source_of(call, H200)
        ahead = triton.compile(source, target=target, options=options.__dict__)
        args = {name: real(value) for name, value in call.args.items()}
        tiles = {**call.constants, **call.config.blocks}
        taken = call.function.warmup(grid=(call.grid,), **args, **tiles, **call.options)
        assert taken.hash == ahead.hash


def test_launches_that_differ_in_sizes_alone_are_compiled_once() -> None:
    (one,) = launched("lowrank_linear ragged")
    rows = one.args["M"]
    assert rows % 16
    more = Call(one.op, one.config, one.grid + 1, {**one.args, "M": rows + 2}, one.constants)
    assert list(distinct([one, more], H200).values()) == [one]
    even = Call(one.op, one.config, one.grid, {**one.args, "M": 64}, one.constants)
    assert seen(even, H200) != seen(one, H200)


@pytest.mark.slow
@pytest.mark.usefixtures("pretended")
def test_all_cores_compile_and_tell_what_they_did(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = launched("lowrank_linear decode")
    broken = Call(calls[0].op, calls[0].config, 1, calls[0].args, {})
    listed = [("well", calls[0], "one"), ("ill", broken, "two")]
    monkeypatch.setattr(compiling, "listed", lambda *_: iter(listed))
    told: list[dict[str, Any]] = []
    compiling.run(H200, told.append, time.monotonic() + 60.0)
    outcomes = {line["row"]["launch"]: line["row"]["outcome"] for line in told[:-1]}
    assert {name.partition(":")[0]: outcome for name, outcome in outcomes.items()} == {
        "well": "compiled", "ill": "does not compile"
    }  # fmt: skip


@pytest.mark.slow
def test_every_launch_of_a_harvest_can_be_listed() -> None:
    told: list[dict[str, Any]] = []
    counts: Any = compiling.Counter()
    found = list(compiling.listed(H200, told.append, counts))
    assert told == []
    assert counts["distinct"] == len(found) < counts["launches"]
    assert len(found) <= compiling.plan.MOST_COMPILED
