"""The timer of paths. What it measures is not asserted, only how."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tensorlrf import ops
from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.ops import _timing
from tests.draws import seeded
from tests.ops.samples import random_factors, random_grouped


def test_calls_alternate_forwards_and_backwards() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    timings = ops.time_calls(calls, seconds=1e-6)
    # Each call once to warm up and once for its length, then three rounds of 20 repeats.
    assert order[:4] == list("aabb")
    assert order[4:] == [name for name in "abbaab" for _ in range(20)]
    assert all(len(samples) == 3 for samples in timings.samples.values())


def by_own_clock(monkeypatch: pytest.MonkeyPatch, **times: list[float]) -> ops.Timings:
    """Of calls that say how long they took, by name, the last time again and again."""

    def say(values: list[float]) -> Callable[[], float]:
        return lambda: values.pop(0) if len(values) > 1 else values[0]

    monkeypatch.setattr(_timing, "_sample_host", lambda call, repeats: call())
    calls = {name: say([0.0, *values]) for name, values in times.items()}  # the first warms up
    return ops.time_calls(calls, seconds=1e-9, hopeless=3.0)


def test_a_hopeless_call_is_not_sampled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    timings = by_own_clock(monkeypatch, slow=[7.0, 5.0, 0.1], quick=[1.0])
    assert timings.samples == {"slow": (5.0,), "quick": (1.0, 1.0, 1.0)}
    assert timings.best == "quick"


def test_a_call_that_was_slow_but_once_is_sampled_as_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timings = by_own_clock(monkeypatch, late=[7.0, 2.0, 0.5], even=[1.0])
    assert timings.samples == {"late": (0.5, 0.5, 0.5), "even": (1.0, 1.0, 1.0)}


def test_best_is_the_smallest_median_and_the_table_says_so() -> None:
    timings = ops.Timings({"dense": (4e-3, 5e-3, 9e-3), "chain": (1e-3, 2e-3, 9e-2)})
    assert timings.best == "chain"
    assert timings.median("dense") == 5e-3
    assert timings.minimum("dense") == 4e-3
    lines = str(timings).splitlines()
    assert lines[1].split() == ["dense", "5.0000", "4.0000", "1.00"]
    assert lines[2].split() == ["chain", "2.0000", "1.0000", "2.50", "<-", "best"]


@pytest.mark.parametrize("rebuild", [False, True])
@pytest.mark.parametrize(("axes", "groups"), [(2, 1), (1, 1), (3, 1), (2, 3)])
def test_all_paths_of_a_convolution_are_timed(axes: int, groups: int, rebuild: bool) -> None:
    factors = random_grouped("cp", (8 * groups, 4, *(2, 3, 2)[:axes]), groups)
    x, bias = seeded(1, 4 * groups, *(6, 5, 4)[:axes]), seeded(8 * groups)
    for padding in (1, "same", ((0, 1),) * axes):
        timings = ops.time_paths(factors, x, bias, padding=padding, rebuild=rebuild, seconds=1e-4)
        assert tuple(timings.samples) == ops.conv_paths(factors)
        assert all(t > 0 for samples in timings.samples.values() for t in samples)


def test_chosen_paths_of_a_linear_layer_are_timed() -> None:
    factors = random_factors("lowrank", (8, 4), 2)
    timings = ops.time_paths(factors, seeded(5, 4), paths=["chain"], seconds=1e-3)
    assert tuple(timings.samples) == ("chain",)


def test_wrong_arguments_are_named() -> None:
    factors = random_factors("lowrank", (8, 4), 2)
    with pytest.raises(ArgumentError, match="calls"):
        ops.time_calls({})
    with pytest.raises(ArgumentError, match="seconds=0"):
        ops.time_calls({"a": lambda: None}, seconds=0)
    with pytest.raises(ArgumentError, match="path='fold' is unknown"):
        ops.time_paths(factors, seeded(5, 4), paths=["fold"])
    with pytest.raises(ShapeError, match="in_features"):
        ops.time_paths(factors, seeded(5, 3))
