"""Layers that do not wait for each other are factored side by side, as one after the other."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import tensorlrf
from tensorlrf.compression import _apply
from tensorlrf.decomposition import _side_by_side
from tensorlrf.decomposition._cores import Cores
from tensorlrf.errors import ArgumentError


def model() -> nn.Sequential:
    torch.manual_seed(0)
    sizes = (24, 32, 20, 36, 28)
    return nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes)))


@pytest.fixture(autouse=True)
def cores() -> Iterator[None]:
    before, threads = torch.get_num_threads(), threading.active_count()
    yield
    assert threading.active_count() == threads
    torch.set_num_threads(before)


def pretend(monkeypatch: pytest.MonkeyPatch, count: int) -> set[int]:
    """So many cores; gives the threads that have factored a layer."""
    torch.set_num_threads(4)
    monkeypatch.setattr(_side_by_side, "look", lambda: Cores(count, count))
    who: set[int] = set()
    factor = _apply.factor
    together = threading.Barrier(min(count, 4))

    def watched(*args: Any) -> Any:
        who.add(threading.get_ident())
        assert torch.get_num_threads() == 1
        if count > 1:
            together.wait(20)
        return factor(*args)

    monkeypatch.setattr(_apply, "factor", watched)
    return who


@pytest.mark.parametrize("options", [{}, {"calibration": "given", "target": "independent"}])
@pytest.mark.parametrize("method", ["svd", "monarch"])
def test_results_do_not_depend_on_it(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], method: str
) -> None:
    if "calibration" in options:
        draws = torch.Generator().manual_seed(1)
        options["calibration"] = [torch.randn(200, 24, generator=draws) for _ in range(3)]
    found = {}
    for count in (1, 4):
        with monkeypatch.context() as patched:
            who = pretend(patched, count)
            small, report = tensorlrf.compress(model(), keep_params=0.5, method=method, **options)
            assert len(who) == count
            found[count] = small.state_dict(), report
    for name, tensor in found[1][0].items():
        assert torch.equal(found[4][0][name], tensor)
    assert found[1][1].layers == found[4][1].layers


def test_a_generator_goes_from_layer_to_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for count in (1, 4):
        torch.set_num_threads(count)
        monkeypatch.setattr(_side_by_side, "look", lambda count=count: Cores(count, count))
        draws = torch.Generator().manual_seed(3)
        method = tensorlrf.SVD(method="randomized")
        small, _ = tensorlrf.compress(model(), keep_params=0.5, method=method, random_state=draws)
        found.append((small.state_dict(), draws.get_state()))
    assert torch.equal(found[0][1], found[1][1])
    assert all(torch.equal(found[1][0][name], t) for name, t in found[0][0].items())


def test_an_error_names_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str, *rest: Any) -> Any:
        raise ArgumentError("it cannot be")

    torch.set_num_threads(4)
    monkeypatch.setattr(_side_by_side, "look", lambda: Cores(4, 4))
    monkeypatch.setattr(_apply, "factor", fails)
    with pytest.raises(ArgumentError, match="it cannot be") as told:
        tensorlrf.compress(model(), keep_params=0.5)
    assert told.value.__notes__ == ["while factoring 0"]


def test_no_more_at_once_than_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(4)
    monkeypatch.setattr(_side_by_side, "look", lambda: Cores(4, 4))
    monkeypatch.setattr(_apply, "ROOM", 1)
    factor, running = _apply.factor, threading.Semaphore(1)

    def alone(*args: Any) -> Any:
        assert running.acquire(blocking=False)
        try:
            return factor(*args)
        finally:
            running.release()

    monkeypatch.setattr(_apply, "factor", alone)
    tensorlrf.compress(model(), keep_params=0.5)
