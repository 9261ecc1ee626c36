"""Sensitivities of a model whose layers are looked at a few at a time, for want of memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tensorlrf import compress
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration._memory import parted
from tensorlrf.compression.losses import _probe
from tensorlrf.compression.losses._probe import Probe
from tests.compression.networks import set_weights
from tests.draws import seeded32

NAMES = ["0", "3", "5"]

ROUNDING = 1e-4
"""Of sums in float32, which passes over other layers make in another order."""


def net() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(4, 12, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 24),
        nn.ReLU(),
        nn.Linear(24, 30),
    )
    return set_weights(model)


def probe(room: int, state: int | torch.Generator = 0) -> Probe:
    batches = [seeded32(12, 4, 4, 4, seed=k) for k in range(4)]
    data = Calibration.read(batches, nn.Identity(), 0.3)
    assert data is not None
    return Probe(net(), NAMES, replace(data, room=room), random_state=state, progress=False)


@pytest.mark.parametrize("rule", ["fisher", "measured", "energy"])
def test_parts_tell_what_all_layers_at_once_tell(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def counted(model: nn.Module, names: list[str], *others: object, **given: object) -> object:
        seen.append(len(names))
        return bases_of(model, names, *others, **given)

    bases_of = _probe.bases_of
    monkeypatch.setattr(_probe, "bases_of", counted)
    whole, parts = probe(1 << 29), probe(1)
    once, apart = whole.sensitivity(rule), parts.sensitivity(rule)
    assert seen == [3, 1, 1, 1]
    for one, other in zip(once.layers, apart.layers, strict=True):
        assert (one.name, one.ranks) == (other.name, other.ranks)
        assert other.losses == pytest.approx(one.losses, rel=ROUNDING, abs=1e-9)
    ranks = {"0": 3, "3": 5, "5": 2}
    assert parts.loss_at(ranks) == pytest.approx(whole.loss_at(ranks), rel=ROUNDING)
    assert seen == [3, 1, 1, 1, 1, 1, 1]  # those of all layers are kept, others are not


def test_a_generator_is_drawn_from_as_for_all_at_once() -> None:
    told, left = [], []
    for room in (1 << 29, 1):
        draws = torch.Generator().manual_seed(3)
        told.append(probe(room, draws).sensitivity("fisher").layers)
        left.append(torch.rand(1, generator=draws))
    assert torch.equal(*left)
    for one, other in zip(*told, strict=True):
        assert other.losses == pytest.approx(one.losses, rel=ROUNDING, abs=1e-9)


def test_a_limit_of_memory_holds_for_the_allocation() -> None:
    batches = [seeded32(80, 4, 4, 4, seed=k) for k in range(4)]
    options = {"keep_params": 0.6, "skip": [], "calibration": batches, "allocation": "fisher"}
    # Of the largest layer 130 kB, and of the sums over its outputs 5 kB.
    found = [
        compress(net(), **options, memory_limit=limit, progress=False)[1]  # type: ignore[arg-type]
        for limit in (None, 10**6)
    ]
    assert [row.rank for row in found[0].layers] == [row.rank for row in found[1].layers]


def test_parts_are_filled_one_after_the_other() -> None:
    sizes = {"a": 3, "b": 4, "c": 9, "d": 1, "e": 0}
    assert parted(sizes, 8) == [["a", "b"], ["c"], ["d", "e"]]
    assert parted(sizes, 0) == [["a"], ["b"], ["c"], ["d"], ["e"]]
    assert parted({}, 8) == []
