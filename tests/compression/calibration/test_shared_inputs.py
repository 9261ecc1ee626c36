"""Layers that are fed the very same tensor: what is known of it is summed up once, for all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tensorlrf import compress
from tensorlrf.compression import Report
from tensorlrf.compression.calibration import _calibrate, _suspended
from tensorlrf.compression.calibration._correction import InputLags
from tensorlrf.compression.calibration._shared_inputs import Identity
from tensorlrf.compression.calibration.moments._moments import LinearMoments
from tests.compression.networks import UNIFORM, set_weights
from tests.draws import seeded32


class Attention(nn.Module):
    """Query, key and value (fewer of the latter two) after a layer, and another behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.query = nn.Linear(16, 24), nn.Linear(24, 24)
        self.key, self.value = nn.Linear(24, 12), nn.Linear(24, 12)
        self.last = nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        query, key, value = self.query(x), *self.others(x)
        return self.last(torch.cat([query[:, :12] * key, query[:, 12:] + value], 1))

    def others(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.key(x), self.value(x)


class Scaled(Attention):
    """For large batches the key reads something else."""

    def others(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.key(2 * x if len(x) > 80 else x), self.value(x)


class Written(Attention):
    """For large batches the value reads what is written into the very same memory."""

    def others(self, x: Tensor) -> tuple[Tensor, Tensor]:
        key = self.key(x)
        return key, self.value(x.mul_(2) if len(x) > 80 else x)


class Absent(Attention):
    """Large batches have no key."""

    def others(self, x: Tensor) -> tuple[Tensor, Tensor]:
        key = x[:, :12] if len(x) > 80 else self.key(x)
        return key, self.value(x)


class Late(Attention):
    """Only large batches have a key; the first pass has not seen one."""

    def others(self, x: Tensor) -> tuple[Tensor, Tensor]:
        key = self.key(x) if len(x) > 80 else x[:, :12]
        return key, self.value(x)


BATCHES = [seeded32(rows, 16, seed=rows) for rows in (70, 90, 80, 100, 75, 95)]


def compressed(model: nn.Module, **options: Any) -> tuple[nn.Module, Report]:
    options = {"keep_params": 0.6, "calibration": BATCHES, "progress": False, **UNIFORM, **options}
    return compress(set_weights(model), **options)


@pytest.mark.parametrize("target", ["original", "prefix", "independent"])
def test_sums_are_made_once(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[type] = []
    for kind in (LinearMoments, InputLags):
        add = kind.add

        def counted(self: Any, *args: Any, _add: Any = add, _kind: type = kind) -> None:
            added.append(_kind)
            _add(self, *args)

        monkeypatch.setattr(kind, "add", counted)
    small, report = compressed(Attention(), target=target)
    # The first, query, key and value together, the last.
    assert added.count(LinearMoments) == 3 * len(BATCHES)
    assert added.count(InputLags) == (3 * len(BATCHES) if target == "original" else 0)

    for way in (_calibrate, _suspended):
        monkeypatch.setattr(way, "leaders", lambda *args, **options: {})
    added.clear()
    alone, told = compressed(Attention(), target=target)
    assert added.count(LinearMoments) == 5 * len(BATCHES)
    same(small, report, alone, told)


@pytest.mark.parametrize("target", ["original", "prefix", "independent"])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("kind", [Attention, Scaled, Written, Absent, Late])
def test_passes_that_take_another_course_are_seen(
    kind: type[Attention], workers: int, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_suspended, "workers_for", lambda *_: workers)
    small, report = compressed(kind(), target=target)
    for way in (_calibrate, _suspended):
        monkeypatch.setattr(way, "leaders", lambda *args, **options: {})
    same(small, report, *compressed(kind(), target=target))


def same(small: nn.Module, report: Report, other: nn.Module, told: Report) -> None:
    for row in report.layers:
        one = told.layer(row.name)
        assert (row.samples, row.data_aware, row.rank) == (one.samples, one.data_aware, one.rank)
        if row.output_error is not None:
            # Moments are sums of products in float32, in another order at the most.
            assert row.output_error == pytest.approx(one.output_error, rel=1e-4)
    with torch.no_grad():
        # A fit multiplies the rounding of its moments by their condition.
        torch.testing.assert_close(small(BATCHES[1]), other(BATCHES[1]), rtol=1e-3, atol=1e-4)


def test_what_tells_a_tensor_from_others() -> None:
    x = torch.randn(6, 4)
    mark = Identity.of(x)
    assert mark == Identity.of(x)
    assert mark == Identity.of(x.detach())
    for other in (x.clone(), x[1:], x.T, x[:, :3], x.view(4, 6), x.view(torch.int32)):
        assert mark != Identity.of(other)
    x.add_(0)
    assert mark != Identity.of(x)
    del x, other
    # Memory that is given out again is that of another tensor.
    assert all(mark != Identity.of(torch.empty(6, 4)) for _ in range(50))


def test_of_some_tensors_nothing_is_told() -> None:
    with torch.inference_mode():
        assert Identity.of(torch.ones(3)) is None
    assert Identity.of(torch.eye(3).to_sparse()) is None
    assert Identity.of(nn.Parameter(torch.ones(3))) is None
    assert Identity.of(None) is None
