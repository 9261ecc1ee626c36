"""Calls side by side: in order, each as by itself, and nobody left behind."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial

import pytest
import torch
from torch import Tensor

from tensorlrf.decomposition import fit_svd
from tensorlrf.decomposition.linalg import parallel
from tensorlrf.decomposition.linalg.cores import Cores
from tensorlrf.decomposition.linalg.parallel import side_by_side
from tensorlrf.errors import TensorlrfWarning


@pytest.fixture(autouse=True)
def four(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch has four threads on a machine of 16 cores; and no thread outlives a test."""
    monkeypatch.setattr(parallel, "look", lambda: Cores(16, 16))
    before, threads = torch.get_num_threads(), threading.active_count()
    torch.set_num_threads(4)
    yield
    assert threading.active_count() == threads
    assert torch.get_num_threads() == 4
    torch.set_num_threads(before)


def numbers(k: int) -> tuple[int, int, int]:
    time.sleep(0.002 * (5 - k % 5))
    return k, torch.get_num_threads(), threading.get_ident()


@pytest.mark.parametrize(("count", "share"), [(9, 1), (4, 1), (2, 2), (1, 4)])
def test_in_order_and_the_cores_shared_out(count: int, share: int) -> None:
    found = list(side_by_side([partial(numbers, k) for k in range(count)]))
    assert [k for k, _, _ in found] == list(range(count))
    assert {threads for _, threads, _ in found} == {share}
    assert len({who for _, _, who in found}) <= 4


def test_results_are_those_of_one_after_the_other() -> None:
    draws = torch.Generator().manual_seed(0)
    weights = [torch.randn(20 + k, 30, generator=draws) for k in range(7)]
    calls = [partial(fit_svd, weight, 5) for weight in weights]
    for fit, call in zip(side_by_side(calls), calls, strict=True):
        assert torch.equal(fit.factors.left, call().factors.left)
        assert fit.error == call().error


def test_no_more_at_once_than_there_is_room_for() -> None:
    running, most = [0], [0]
    lock = threading.Lock()

    def call(size: int) -> int:
        with lock:
            running[0] += size
            most[0] = max(most[0], running[0])
        time.sleep(0.005)
        with lock:
            running[0] -= size
        return size

    sizes = [3, 3, 3, 9, 1, 1, 1, 1, 20, 2]
    calls = [partial(call, size) for size in sizes]
    assert list(side_by_side(calls, sizes, 9)) == sizes
    assert most[0] == 20  # the one that is larger than the room, by itself
    most[0] = 0
    kept = [size for size in sizes if size <= 9]
    list(side_by_side([partial(call, size) for size in kept], kept, 9))
    assert 0 < most[0] <= 9


def fails(begun: list[int], k: int) -> int:
    begun.append(k)
    if k in (3, 4):
        raise ValueError(f"call {k}")
    return k


def test_the_first_that_fails_is_told_and_no_more_begin() -> None:
    begun: list[int] = []
    found = []
    with pytest.raises(ValueError, match="call 3"):
        found.extend(side_by_side([partial(fails, begun, k) for k in range(40)]))
    assert max(begun) < 3 + 4
    assert found == [0, 1, 2]


def forever(begun: threading.Event) -> int:
    begun.set()
    while True:
        time.sleep(0.001)


def test_who_stops_in_the_middle_ends_what_is_under_way() -> None:
    begun = threading.Event()
    calls: list[Callable[[], int]] = [lambda: 1, partial(forever, begun), partial(forever, begun)]
    with closing(side_by_side(calls)) as results:  # type: ignore[type-var]
        assert next(results) == 1
        begun.wait()


def test_an_interrupt_ends_what_is_under_way() -> None:
    begun = threading.Event()
    main = threading.main_thread().ident
    assert main is not None

    def interrupts() -> int:
        begun.wait()
        signal.pthread_kill(main, signal.SIGINT)
        return forever(begun)

    # A shell has what it runs in the background ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(side_by_side([partial(forever, begun), interrupts]))
    finally:
        signal.signal(signal.SIGINT, before)


def test_grad_mode_is_the_callers() -> None:
    calls = [torch.is_grad_enabled] * 4
    assert set(side_by_side(calls)) == {True}
    with torch.no_grad():
        assert set(side_by_side(calls)) == {False}
    with torch.inference_mode():
        assert set(side_by_side([torch.is_inference_mode_enabled] * 4)) == {True}


def test_warnings_point_at_the_users_line() -> None:
    weight = torch.randn(12, 10).to(torch.bfloat16)

    def fitted(weight: Tensor) -> object:
        return fit_svd(weight, error=1e-3)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", TensorlrfWarning)
        fitted(weight)
        list(side_by_side([partial(fit_svd, weight, error=1e-3)] * 2))
    assert [w.filename for w in seen] == [__file__] * 3
