"""objective="latency": layers that do not get faster stay, by a clock that says what it should."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf import CP, SVD, Tucker, compress, plan
from tensorlrf.compression.plan.times import _whole, _worthwhile
from tensorlrf.errors import ArgumentError
from tensorlrf.nn import FactoredLayer
from tensorlrf.ops import Timings
from tests.compression.networks import Snapshot, set_weights
from tests.draws import seeded32


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 16, 3)
        self.groups = nn.Conv2d(16, 32, 3, groups=2)
        self.hidden = nn.Linear(32, 32)
        self.unused = nn.Linear(32, 48)

    def forward(self, x: Tensor, offset: float = 0.0) -> Tensor:
        x = self.groups(torch.relu(self.conv(x) + offset))
        return self.hidden(x.mean((2, 3)))


Asked = dict[tuple[int, ...], tuple[nn.Module, FactoredLayer, Tensor]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What was timed, by the shape of the weight; a conv is 2 s dense and 1 s, a linear 1 s and
    .96 s, within the noise."""
    seen: Asked = {}

    def times_of(layer: nn.Module, factored: Any, x: Tensor, *, seconds: float) -> Any:
        (one,) = factored
        seen[tuple(layer.weight.shape)] = (layer, one, x)  # type: ignore[arg-type]
        one(x)
        return (2.0, [(1.0, "chain")]) if x.ndim == 4 else (1.0, [(0.96, "chain")])

    monkeypatch.setattr(_worthwhile, "times_of", times_of)
    set_whole(monkeypatch, {"dense": 3.0, "small": 2.5})
    return seen


def set_whole(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> list[list[str]]:
    """Passes of whole models take these, others 2 s; the names that were asked for."""
    asked: list[list[str]] = []

    def time_calls(calls: dict[str, Any], **_: Any) -> Timings:
        asked.append(list(calls))
        for call in calls.values():
            call()
        return Timings({name: (seconds.get(name, 2.0),) * 3 for name in calls})

    monkeypatch.setattr(_whole, "time_calls", time_calls)
    return asked


@pytest.mark.parametrize("method", ["svd", Tucker(rank_shares=(0.5, 0.5)), CP(n_iter_max=2)])
def test_slow_layers_stay_with_the_reason(asked: Asked, method: Any) -> None:
    model = set_weights(Net()).train()
    before = Snapshot(model)
    x = seeded32(5, 8, 9, 9).to(memory_format=torch.channels_last)
    made = plan(model, keep_params=0.5, method=method, objective="latency", example=(x, 0.5))
    before.check()
    row = made.layer("hidden")
    assert row.reason == "no faster on factors: 960 ms against 1e+03 ms dense on the example"
    assert not row.eligible
    allotment = made.allotment
    # Alone two layers save 2 s of 5, in a model that takes 3 s in all.
    assert (allotment.dense_cost, allotment.cost) == (3.0, 2.5)
    assert allotment.promised_cost == pytest.approx(1.8)
    assert "3e+03 ms to 2.5e+03 ms (83.3%), its layers alone promised 1.8e+03 ms" in str(made)
    assert {one.name for one in made.factored} == {"conv", "groups", "unused"}
    # Each at its planned rank, on an input of the shape and layout that the example brings it.
    layer, factored, seen = asked[(16, 8, 3, 3)]
    assert factored.factors.n_params == made.layer("conv").params_after
    assert seen.shape == x.shape
    assert seen.stride() == x.stride()
    assert not torch.equal(seen, x)
    assert asked[(32, 8, 3, 3)][1].factors.n_params == made.layer("groups").params_after
    assert asked[(32, 32)][2].shape == (5, 32)
    # What the example does not reach is not judged.
    assert (48, 32) not in asked
    assert not layer.training


def test_compress_leaves_them(asked: Asked) -> None:
    model = set_weights(Net())
    x = seeded32(5, 8, 9, 9)
    small, report = compress(
        model, keep_params=0.5, objective="latency", example=x, skip=["unused"]
    )
    assert type(small.hidden) is nn.Linear
    assert "no faster on factors" in report.layer("hidden").reason
    assert report.latency is not None
    assert min(report.latency.dense, report.latency.compressed) > 0
    assert "latency on the example" in str(report)
    # Tuned on the example, so that what was promised is what it runs on.
    assert all(m.measured for m in small.modules() if isinstance(m, FactoredLayer))


def test_layers_are_chosen_in_the_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    gains = {"0": 0.9, "1": 0.8, "2": 0.5, "3": 0.99}
    model = set_weights(nn.Sequential(*(nn.Linear(32, n) for n in (32, 32, 32, 32))))
    names = {id(m): name for name, m in model.named_children()}
    monkeypatch.setattr(_worthwhile, "replica", lambda model: model)

    def times_of(layer: nn.Module, factored: Any, x: Tensor, *, seconds: float) -> Any:
        return 1.0, [(gains[names[id(layer)]], "chain")]

    monkeypatch.setattr(_worthwhile, "times_of", times_of)
    x = seeded32(4, 32)

    def planned() -> tensorlrf.Plan:
        return plan(model, keep_params=0.5, objective="latency", example=x, skip=[])

    for fastest, kept in (("0.05", "012"), ("0.15", "12"), ("0.3", "2")):
        asked = set_whole(monkeypatch, {"dense": 4.0, fastest: 1.0, "small": 1.5})
        made = planned()
        assert "".join(row.name for row in made.factored) == kept
        assert asked == [["dense", "0.05", "0.15", "0.3"], ["dense", "small"]]
        assert "no faster on factors" in made.layer("3").reason
        if "0" not in kept:
            assert "the whole model is no faster with it on factors" in made.layer("0").reason
        assert made.allotment.cost == 1.5
    # Pairs that do not confirm it: then none is.
    set_whole(monkeypatch, {"dense": 4.0, "small": 4.1})
    made = planned()
    assert not made.factored
    assert made.allotment.cost is None


def test_what_cannot_be_timed(asked: Asked) -> None:
    model, x = set_weights(Net()), seeded32(5, 8, 9, 9)
    for options, message in (
        ({"keep_params": 0.5}, "objective='latency' needs example="),
        ({"error": 0.5, "example": x}, "that of conv is decided by the fit"),
        ({"method": SVD(error=0.5), "example": x}, "decided by the fit"),
        ({"keep_params": 0.5, "example": x[:, :3]}, "example: the model cannot take batch 0"),
    ):
        with pytest.raises(ArgumentError, match=message):
            plan(model, objective="latency", **options)  # type: ignore[arg-type]
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_the_global_generator_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_worthwhile, "times_of", lambda *_, **__: (2.0, [(1.0, "chain")]))
    set_whole(monkeypatch, {"dense": 3.0, "small": 2.5})

    class Draws(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.rand_like(x))  # also in eval mode

    model = Draws(nn.Linear(32, 32))
    state = torch.get_rng_state()
    plan(model, keep_params=0.5, objective="latency", example=seeded32(2, 32))
    assert torch.equal(torch.get_rng_state(), state)
