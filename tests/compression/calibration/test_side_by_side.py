"""Layers that do not wait for each other are factored side by side, as one after the other."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import tensorlrf
from tensorlrf.compression import _working_copy
from tensorlrf.compression.calibration import _suspended
from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.calibration._statistics import Stream
from tensorlrf.decomposition.linalg import parallel
from tensorlrf.decomposition.linalg.cores import Cores
from tensorlrf.errors import ArgumentError
from tests.compression.networks import UNIFORM


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
    monkeypatch.setattr(parallel, "look", lambda: Cores(count, count))
    who: set[int] = set()
    factor = _working_copy.factor
    together = threading.Barrier(min(count, 4))

    def watched(*args: Any) -> Any:
        who.add(threading.get_ident())
        assert torch.get_num_threads() == 1
        if count > 1:
            together.wait(20)
        return factor(*args)

    monkeypatch.setattr(_working_copy, "factor", watched)
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
        monkeypatch.setattr(parallel, "look", lambda count=count: Cores(count, count))
        draws = torch.Generator().manual_seed(3)
        method = tensorlrf.SVD(solver="randomized")
        small, _ = tensorlrf.compress(model(), keep_params=0.5, method=method, random_state=draws)
        found.append((small.state_dict(), draws.get_state()))
    assert torch.equal(found[0][1], found[1][1])
    assert all(torch.equal(found[1][0][name], t) for name, t in found[0][0].items())


def test_an_error_names_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str, *rest: Any) -> Any:
        raise ArgumentError("it cannot be")

    torch.set_num_threads(4)
    monkeypatch.setattr(parallel, "look", lambda: Cores(4, 4))
    monkeypatch.setattr(_working_copy, "factor", fails)
    with pytest.raises(ArgumentError, match="it cannot be") as told:
        tensorlrf.compress(model(), keep_params=0.5)
    assert told.value.__notes__ == ["while factoring 0"]


def test_no_more_at_once_than_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(4)
    monkeypatch.setattr(parallel, "look", lambda: Cores(4, 4))
    monkeypatch.setattr(_working_copy, "ROOM", 1)
    factor, running = _working_copy.factor, threading.Semaphore(1)

    def alone(*args: Any) -> Any:
        assert running.acquire(blocking=False)
        try:
            return factor(*args)
        finally:
            running.release()

    monkeypatch.setattr(_working_copy, "factor", alone)
    tensorlrf.compress(model(), keep_params=0.5)


class Meets(nn.Module):
    """Notes how many passes are in it at once, and on how many threads each. The first wait there
    until as many have come as are to come together."""

    running, most, wanted, threads = 0, 0, 1, frozenset[int]()
    changed = threading.Condition()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kind = type(self)
        with kind.changed:
            kind.running += 1
            kind.most = max(kind.most, kind.running)
            if threading.current_thread() is not threading.main_thread():
                kind.threads |= {torch.get_num_threads()}
                kind.changed.notify_all()
                kind.changed.wait_for(lambda: kind.most >= kind.wanted, 30)
            kind.running -= 1
        return x


def linears() -> tuple[nn.Module, list[torch.Tensor]]:
    draws = torch.Generator().manual_seed(2)
    return model(), [torch.randn(60 + k, 24, generator=draws) for k in range(6)]


def convolutions() -> tuple[nn.Module, list[torch.Tensor]]:
    torch.manual_seed(0)
    draws = torch.Generator().manual_seed(2)
    layers = [
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2),
        nn.Conv2d(16, 16, 1),
    ]
    return nn.Sequential(*layers), [torch.randn(3, 3, 20, 20, generator=draws) for _ in range(6)]


@pytest.mark.parametrize("target", ["original", "prefix"])
@pytest.mark.parametrize("made", [linears, convolutions])
def test_passes_side_by_side_see_the_same(
    monkeypatch: pytest.MonkeyPatch,
    made: Callable[[], tuple[nn.Module, list[torch.Tensor]]],
    target: str,
) -> None:
    torch.set_num_threads(4)
    given, batches = made()
    found = []
    for cores, count in ((1, 1), (8, 4)):  # one pass for two cores
        Meets.most, Meets.wanted, Meets.threads = 0, count, frozenset()
        for patched in (_suspended, parallel):
            monkeypatch.setattr(patched, "look", lambda cores=cores: Cores(cores, cores))
        small, report = tensorlrf.compress(
            nn.Sequential(Meets(), *given), keep_params=0.5, target=target, calibration=batches
        )
        assert Meets.most == count
        assert Meets.threads == {1}
        found.append((small.state_dict(), report))
    for name, tensor in found[0][0].items():
        assert torch.equal(found[1][0][name], tensor), name
    assert found[0][1].layers == found[1][1].layers


def test_an_error_in_a_pass_leaves_no_other_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(4)
    monkeypatch.setattr(_suspended, "look", lambda: Cores(8, 8))
    Meets.wanted = 1
    given, batches = linears()
    batches[3][5, 5] = torch.nan
    with pytest.raises(ArgumentError, match="inputs of 1 contain NaN or Inf"):
        tensorlrf.compress(
            nn.Sequential(Meets(), *given), keep_params=0.5, calibration=batches, **UNIFORM
        )


@pytest.mark.parametrize("kind", ["linear", "shifts", "patches", "groups"])
@pytest.mark.parametrize("lags", [False, True])
def test_merged_streams_are_one(kind: str, lags: bool) -> None:
    torch.manual_seed(0)
    layer, shape = {
        "linear": (nn.Linear(12, 20), (30, 12)),
        "shifts": (nn.Conv2d(9, 6, 3, padding=1), (2, 9, 8, 7)),
        "patches": (nn.Conv2d(9, 6, 3, stride=2), (2, 9, 8, 7)),
        "groups": (nn.Conv2d(6, 6, 3, groups=2), (2, 6, 8, 7)),
    }[kind]
    site = DenseLayer.of(layer)
    whole, *parts = (Stream(site, lags=lags) for _ in range(4))
    for part in parts:
        x = torch.randn(*shape)
        x0 = x + 0.1 * torch.randn(*shape)
        whole.add(x, x0)
        part.add(x, x0)
    for part in parts[1:]:
        parts[0].merge(part)
    for one, other in zip(whole.statistics(), parts[0].statistics(), strict=True):
        for one_part, other_part in zip(numbers(one), numbers(other), strict=True):
            # Sums of few float64 terms in another order.
            torch.testing.assert_close(one_part, other_part, rtol=1e-12, atol=1e-12)
        assert (one.lag is None) == (not lags)


def numbers(value: Any) -> list[torch.Tensor]:
    """All there is in a value of fields, those of its fields included."""
    if dataclasses.is_dataclass(value):
        fields = [getattr(value, field.name) for field in dataclasses.fields(value)]
        return [number for part in fields for number in numbers(part)]
    return [] if value is None else [torch.as_tensor(value, dtype=torch.float64)]
