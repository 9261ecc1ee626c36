"""Layers whose moments are larger than the memory: told by name before anything is allocated."""

from __future__ import annotations

import re
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tensorlrf import Report, apply, compress, compress_, plan
from tensorlrf.compression.calibration import _layer_moments
from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.calibration._free_memory import free_bytes
from tensorlrf.compression.calibration._memory import METRIC, Gathered
from tensorlrf.compression.calibration._statistics import Stream
from tensorlrf.compression.calibration.moments._moments import ShiftMoments, moments_of
from tensorlrf.compression.calibration.moments._shifts import differences, sums_of
from tensorlrf.compression.calibration.taps._taps import Tap
from tensorlrf.errors import ArgumentError, CalibrationWarning
from tests.compression.networks import UNIFORM, set_weights
from tests.draws import seeded32


def net() -> nn.Module:
    """In the middle a convolution with patches of 1024 numbers: its G takes 8 MB."""
    model = nn.Sequential(
        nn.Conv2d(8, 64, 1, groups=8),
        nn.Conv2d(64, 8, 4),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 24),
    )
    return set_weights(model)


BATCHES = [seeded32(70, 8, 9, 9, seed=k) for k in range(3)]


@pytest.mark.parametrize("target", ["original", "prefix", "independent"])
def test_such_a_layer_is_fitted_in_a_sketch_and_the_others_in_all(target: str) -> None:
    model = net()
    options: dict[str, Any] = {"keep_params": 0.5, "skip": ["0"], "target": target} | UNIFORM
    message = (
        r"all second moments 1 \([\d.]+ MB; [\d.]+ MB as a sketch of 64 rows\) would take more "
        r"than memory_limit=9000000: .* memory_limit="
    )
    with pytest.warns(CalibrationWarning, match=message):
        small, report = compress(model, calibration=BATCHES, memory_limit=9 * 10**6, **options)
    plain, _ = compress(model, keep_params=0.5, skip=["0"])
    row = report.layer("1")
    assert row.data_aware
    assert row.moments.startswith("a sketch of ")
    assert f"by {row.moments}" in str(report)
    assert report.memory is not None
    assert [one.form != "full" for one in report.memory.layers] == [True, False]
    assert report.memory.peak <= 9 * 10**6
    with torch.no_grad():
        x0 = model[0](BATCHES[-1])  # held out
        errors = [float((one[1](x0) - model[1](x0)).norm()) for one in (small, plain)]
    assert errors[0] < errors[1]
    # The layer behind is fitted to what this one delivers, the given weight or its factors.
    last = report.layer("4")
    assert last.data_aware
    assert last.moments == ""
    with torch.no_grad():
        x = model[0](BATCHES[-1])
        x = model[2:4]((model if target == "independent" else small)[1](x))
        x0 = x if target != "original" else model[:4](BATCHES[-1])
        wanted, got = model[4](x0) - model[4].bias, small[4](x) - model[4].bias
    assert last.output_error == pytest.approx(
        float((got - wanted).norm() / wanted.norm()), rel=1e-3
    )


def test_by_default_half_of_the_free_memory_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorlrf.compression.calibration import _memory

    model, batches = nn.Sequential(nn.Linear(32, 32)), [seeded32(200, 32)]
    compress(model, keep_params=0.5, calibration=batches)
    monkeypatch.setattr(_memory, "free_bytes", lambda _: 40_000.0)
    message = r"0 \(.*kB\) .* half of the free memory, .* the plain method is used"
    with pytest.warns(CalibrationWarning, match=message):
        small, report = compress(model, keep_params=0.5, calibration=batches)
    row = report.layer("0")
    assert not row.data_aware
    assert row.samples is None
    assert row.output_error is None
    plain, _ = compress(model, keep_params=0.5)
    assert torch.equal(small[0].weight, plain[0].weight)
    assert report.memory is not None
    assert report.memory.layers[0].form == "none"
    compress(model, keep_params=0.5, calibration=batches, memory_limit=10**6)


@pytest.mark.parametrize("value", [-1, 0.5, True, "8 GB"])
def test_a_limit_that_is_none(value: Any) -> None:
    with pytest.raises(ArgumentError, match="memory_limit="):
        compress(nn.Linear(32, 32), keep_params=0.5, memory_limit=value)


def test_the_old_word_is_refused_with_the_new_one() -> None:
    model, old = nn.Linear(32, 32), {"moment_bytes": 10**6}
    made = plan(model, keep_params=0.5, skip=[])
    for call in (compress, compress_, partial(apply, plan=made)):
        with pytest.raises(ArgumentError, match="write memory_limit=1000000"):
            call(model, **old)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    st.sampled_from([16, 300]), st.integers(20, 40), st.booleans(), st.sampled_from(["svd", "kron"])
)
def test_a_limit_below_what_a_layer_takes_is_refused_with_the_least_that_is_enough(
    n: int, m: int, lags: bool, method: str
) -> None:
    model, batches = nn.Sequential(nn.Linear(n, m)), [seeded32(5 * n, n), seeded32(50, n)]
    options: dict[str, Any] = {"keep_params": 0.5, "calibration": batches, "method": method}
    options |= {"target": "original" if lags else "prefix", "skip": []}
    message = rf"memory_limit=10 is below what 0 takes .*n = {n} columns.*skip=\['0'\]"
    with pytest.raises(ArgumentError, match=message) as refused:
        compress(model, memory_limit=10, **options)
    found = re.search(r"give memory_limit=(\d+)", str(refused.value))
    assert found is not None
    least = int(found[1])
    with pytest.raises(ArgumentError, match="memory_limit="):
        compress(model, memory_limit=least - 1, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)  # of the sketch
        _, report = compress(model, memory_limit=least, **options)
    assert report.layer("0").data_aware
    assert report.memory is not None
    assert report.memory.peak == least
    assert Report.from_json(report.to_json()) == report
    assert report.memory.layers[0].form in str(report.memory)


def test_what_waits_is_forecast_from_the_first_batch() -> None:
    model = nn.Sequential(nn.Conv2d(9, 16, 3), nn.Conv2d(16, 12, 1))
    batches = [seeded32(6, 9, 8, 8, seed=k) for k in range(3)]
    told = {}
    for target, rerun in (("original", False), ("prefix", False), ("prefix", True)):
        _, report = compress(
            model, keep_params=0.5, skip=[], calibration=batches, target=target, rerun=rerun
        )
        assert report.memory is not None
        told[target, rerun] = [row.activations for row in report.memory.layers]
        assert [row.columns for row in report.memory.layers] == [81, 16]
    once = [4 * 6 * 9 * 64, 4 * 6 * 16 * 36]
    assert told["prefix", True] == once
    assert told["prefix", False] == [3 * one for one in once]
    assert told["original", False] == [6 * one for one in once]


def test_a_metric_of_outputs_is_foreseen_and_given_up_for_want_of_memory() -> None:
    """The layer of 8 outputs, whose moments have most of the memory, and that of 24."""
    options: dict[str, Any] = {
        "keep_params": 0.5, "skip": ["0"], "calibration": BATCHES, "allocation": "uniform",
        "progress": False,
    }  # fmt: skip
    told = {}
    for word in ("outputs", "loss"):
        _, report = compress(net(), metric=word, **options)
        assert report.memory is not None
        told[word] = {row.name: row.work for row in report.memory.layers}
    assert {n: told["loss"][n] - told["outputs"][n] for n in told["loss"]} == {
        "1": METRIC * 8**2,
        "4": METRIC * 24**2,
    }
    wide = nn.Sequential(nn.Linear(16, 1024), nn.ReLU(), nn.Linear(1024, 8))
    data = [seeded32(4200, 16, seed=k) for k in range(2)]
    own = Gathered(lags=True, held=True).need(DenseLayer.of(wide[2])).whole
    _, report = compress(
        set_weights(wide), keep_params=0.5, skip=[], calibration=data, metric="loss",
        allocation="uniform", memory_limit=own + METRIC * 8**2, progress=False,
    )  # fmt: skip
    assert [row.metric for row in report.layers if row.factored] == ["loss", "loss"]
    assert report.memory is not None
    assert report.memory.peak <= own + METRIC * 8**2


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8388608"),
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("rerun", [False, True])
def test_where_memory_ends_all_the_same_the_layer_is_named(
    error: Exception, rerun: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(Stream):
        def add(self, *_: Any) -> None:
            raise error

    monkeypatch.setattr("tensorlrf.compression.calibration._layer_moments.Stream", Full)
    assert _layer_moments.Stream is Full
    model = nn.Sequential(nn.Linear(32, 32))
    message = r"memory ends at the second moments of 0, which take .*kB \(n = 32 columns\)"
    with pytest.raises(ArgumentError, match=message):
        compress(model, keep_params=0.5, calibration=[seeded32(200, 32)], rerun=rerun)


def test_an_error_of_the_model_stays_one_of_the_model() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no memory of this")

    model = nn.Sequential(nn.Linear(32, 32), Odd())
    with pytest.raises(ArgumentError, match=r"cannot take batch 0 .*no memory of this"):
        compress(model, keep_params=0.5, calibration=[seeded32(200, 32)])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(9, 12),
    st.lists(st.integers(1, 4), min_size=1, max_size=2),
    st.integers(0, 2),
    st.integers(1, 2),
    st.booleans(),
)
def test_moments_take_no_more_than_was_said(
    channels: int, kernel: list[int], padding: int, stride: int, transposed: bool
) -> None:
    make: Any = nn.Conv1d if len(kernel) == 1 else nn.Conv2d
    if transposed:
        make = nn.ConvTranspose1d if len(kernel) == 1 else nn.ConvTranspose2d
    conv = make(channels, 4, tuple(kernel), padding=padding, stride=stride)
    site = DenseLayer.of(conv)
    moments = moments_of(site)
    moments.add(seeded32(2, channels, *(9 for _ in kernel)))
    held = 8 * site.columns**2
    if isinstance(moments, ShiftMoments):
        held += sum(8 * t.numel() for t in moments._parts._sums.values())
    assert held <= Gathered(lags=False, held=False).need(site).moments


def test_as_many_sums_as_windows_leave_out() -> None:
    rows, columns = ([Tap(2 * t) for t in range(k)] for k in (3, 2))
    keys: set[tuple[int, ...]] = set()
    for u, v in differences(rows, columns):
        first, second = range(3 - u // 2), range(2 - abs(v) // 2)
        keys |= {(u, v), *((u, v, 0, a) for a in first), *((u, v, 1, b) for b in second)}
        keys |= {(u, v, 2, a, b) for a in first for b in second}
    assert sums_of(rows, columns) == len(keys)
    # Taps of phases of their own: each is apart from itself alone.
    apart = [Tap(0, t) for t in range(3)]
    assert differences(apart, columns) == [(0, 0), (0, 2)]
    assert sums_of(apart, columns) == 4 * (1 + 2) + 4 * (1 + 1)


def test_there_is_memory_here() -> None:
    assert free_bytes(torch.device("cpu")) > 0
    assert free_bytes(torch.device("meta")) == float("inf")
