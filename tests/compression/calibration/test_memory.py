"""Layers whose moments are larger than the memory: told by name before anything is allocated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tensorlrf import compress
from tensorlrf.compression.calibration import _layer_moments
from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.calibration._memory import free_bytes, stream_bytes
from tensorlrf.compression.calibration._moments import ShiftMoments, moments_of
from tensorlrf.compression.calibration._shifts import differences, sums_of
from tensorlrf.compression.calibration._statistics import Stream
from tensorlrf.errors import ArgumentError, CalibrationWarning
from tests.compression.networks import set_weights
from tests.draws import seeded32


def net() -> nn.Module:
    """In the middle a convolution of 1024 channels with 64 taps: its G would take 34 GB."""
    model = nn.Sequential(
        nn.Conv2d(8, 1024, 1, groups=8), nn.Conv2d(1024, 8, 8), nn.Flatten(), nn.Linear(32, 24)
    )
    return set_weights(model)


BATCHES = [seeded32(70, 8, 9, 9, seed=k) for k in range(3)]


@pytest.mark.parametrize("target", ["original", "prefix", "independent"])
def test_such_a_layer_gets_the_plain_method_and_the_others_do_not(target: str) -> None:
    model = net()
    options: dict[str, Any] = {"keep_params": 0.5, "skip": ["0"], "target": target}
    message = r"second moments of 1 \(\d+ GB\) would take more than 107 MB: .*moment_bytes="
    with pytest.warns(CalibrationWarning, match=message):
        small, report = compress(model, calibration=BATCHES, moment_bytes=107 * 10**6, **options)
    plain, _ = compress(model, keep_params=0.5, skip=["0"])
    assert torch.equal(small[1].weight, plain[1].weight)
    row = report.layer("1")
    assert not row.data_aware
    assert row.samples is None
    assert row.output_error is None
    # The layer behind is fitted to what this one delivers, the given weight or its factors.
    last = report.layer("3")
    assert last.data_aware
    with torch.no_grad():
        x = model[0](BATCHES[-1])
        x = (model if target == "independent" else small)[1](x).flatten(1)
        x0 = x if target != "original" else model[:3](BATCHES[-1])
        wanted, got = model[3](x0) - model[3].bias, small[3](x) - model[3].bias
    assert last.output_error == pytest.approx(
        float((got - wanted).norm() / wanted.norm()), rel=1e-3
    )


def test_by_default_half_of_the_free_memory_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorlrf.compression.calibration import _memory

    model, batches = nn.Sequential(nn.Linear(32, 32)), [seeded32(200, 32)]
    compress(model, keep_params=0.5, calibration=batches)
    monkeypatch.setattr(_memory, "free_bytes", lambda _: 40_000.0)
    with pytest.warns(CalibrationWarning, match=r"of 0 \(.*kB\) .* half of the free memory"):
        _, report = compress(model, keep_params=0.5, calibration=batches)
    assert not report.layer("0").data_aware
    compress(model, keep_params=0.5, calibration=batches, moment_bytes=10**6)


@pytest.mark.parametrize("value", [-1, 0.5, True, "8 GB"])
def test_a_limit_that_is_none(value: Any) -> None:
    with pytest.raises(ArgumentError, match="moment_bytes="):
        compress(nn.Linear(32, 32), keep_params=0.5, moment_bytes=value)


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
)
def test_moments_take_no_more_than_was_said(
    channels: int, kernel: list[int], padding: int, stride: int
) -> None:
    make: Any = nn.Conv1d if len(kernel) == 1 else nn.Conv2d
    conv = make(channels, 4, tuple(kernel), padding=padding, stride=stride)
    site = DenseLayer.of(conv)
    moments = moments_of(site)
    moments.add(seeded32(2, channels, *(9 for _ in kernel)))
    held = 8 * site.columns**2
    if isinstance(moments, ShiftMoments):
        held += sum(8 * t.numel() for t in moments._parts._sums.values())
    assert held <= stream_bytes(site, lags=False, holds_out=False)


def test_as_many_sums_as_windows_leave_out() -> None:
    keys = set()
    for da, db in differences(3, 2):
        keys.add((da, db))
        rows, columns = range(3 - da), range(2 - abs(db))
        keys |= {(da, db, 0, a) for a in rows} | {(da, db, 1, b) for b in columns}
        keys |= {(da, db, 2, a, b) for a in rows for b in columns}
    assert sums_of(3, 2) == len(keys)


def test_there_is_memory_here() -> None:
    assert free_bytes(torch.device("cpu")) > 0
    assert free_bytes(torch.device("meta")) == float("inf")
