"""Calls that stop in the middle."""

from __future__ import annotations

import threading

import pytest
import torch

from tensorlrf.compression.calibration import _suspend
from tensorlrf.compression.calibration._suspend import Suspendable


def test_caller_and_call_take_turns() -> None:
    seen: list[str] = []

    def run(this: Suspendable) -> None:
        for name in ("a", "b"):
            seen.append(f"before {name}")
            this.suspend(name)
            seen.append(f"after {name}")

    one = Suspendable(run)
    assert seen == []
    assert one.advance() == "a"
    assert seen == ["before a"]
    assert one.advance() == "b"
    assert one.advance() is None
    assert seen == ["before a", "after a", "before b", "after b"]
    one.close()


def test_errors_come_out_and_nothing_is_left_running() -> None:
    def fails(this: Suspendable) -> None:
        this.suspend("here")
        raise KeyError("from within")

    one = Suspendable(fails)
    assert one.advance() == "here"
    with pytest.raises(KeyError, match="from within"):
        one.advance()
    one.close()

    before = threading.active_count()
    cleaned: list[bool] = []

    def waits(this: Suspendable) -> None:
        try:
            this.suspend("for ever")
        except Exception:
            cleaned.append(False)  # an abandoned call is not an error of the model
        finally:
            cleaned.append(True)

    passes = [Suspendable(waits) for _ in range(5)]
    for one in passes[:3]:
        one.advance()
    for one in passes:
        one.close()
    assert threading.active_count() == before
    assert cleaned == [True] * 3


def test_settings_of_the_calling_thread_hold_within() -> None:
    found: list[object] = []

    def run(_: Suspendable) -> None:
        found.append(torch.empty(1).device.type)

    with torch.device("meta"):
        one = Suspendable(run)
        one.advance()
    one.close()
    assert found == ["meta"]


def test_memory_is_given_back_where_there_is_some_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[str] = []
    held = 100.0
    monkeypatch.setattr(
        _suspend,
        "_releases",
        lambda: (lambda: released.append("mkl"), lambda: released.append("malloc")),
    )
    monkeypatch.setattr(_suspend, "resident_bytes", lambda: held)
    trim = _suspend._Trimmer()
    trim(now=True)
    assert released == ["mkl", "malloc"]
    trim._next = 0.0  # whatever the machine has to do beside this
    held *= 1 + _suspend.GROWTH / 2
    trim()
    assert released == ["mkl", "malloc"]
    held *= 1 + _suspend.GROWTH
    trim()
    assert released == ["mkl", "malloc", "malloc"]
    trim(now=True)
    assert released == ["mkl", "malloc", "malloc", "mkl", "malloc"]


def test_what_the_process_holds_is_known_here_and_infinite_where_nobody_tells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert 1e6 < _suspend.resident_bytes() < 1e12

    def missing(*_: object, **__: object) -> str:
        raise OSError

    monkeypatch.setattr(_suspend.Path, "read_text", missing)
    assert _suspend.resident_bytes() == float("inf")
