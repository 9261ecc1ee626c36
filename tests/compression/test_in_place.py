"""compress_: the same result in the given model, or the given model as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tensorlrf import compress, compress_
from tensorlrf.compression import _working_copy
from tensorlrf.errors import ArgumentError
from tensorlrf.nn import FactoredLayer
from tests.compression.networks import Snapshot, set_weights
from tests.draws import seeded32


def net() -> nn.Module:
    model = nn.Sequential()
    model.body = nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32), nn.ReLU())
    model.twice = model.body[0]
    model.drop = nn.Dropout(0.5)
    model.hidden = nn.Linear(32, 32, bias=False)
    model.fc = nn.Linear(32, 16)
    return set_weights(model)


def data(n: int = 3) -> list[Tensor]:
    return [seeded32(80, 32, seed=k) for k in range(n)]


OPTIONS: list[dict[str, Any]] = [
    {"keep_params": 0.5},
    {"error": 0.4, "skip": []},
    {"keep_params": 0.5, "calibration": data(), "affine": True, "holdout": 0.4},
    {"keep_params": 0.5, "calibration": data(), "target": "original"},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_result_of_compress_on_the_same_modules(options: dict[str, Any]) -> None:
    model = net().train()
    model.body[1].eval()
    small, wanted = compress(model, **options)
    modules = dict(model.named_modules())
    untouched = {n for n, m in small.named_modules() if not isinstance(m, FactoredLayer)}
    report = compress_(model, **options)
    assert report == wanted
    now = dict(model.named_modules())
    for name in untouched:
        assert now[name] is modules[name]
        for parameter in modules[name].parameters(recurse=False):
            assert any(parameter is p for p in model.parameters())
    assert model.twice is model.body[0]
    assert [m.training for m in model.modules()] == [m.training for m in small.modules()]
    assert list(model.state_dict()) == list(small.state_dict())
    for name, value in small.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    x = seeded32(4, 32)
    assert torch.equal(model.eval()(x), small.eval()(x))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError])
@pytest.mark.parametrize("at", range(3))
def test_an_interrupt_leaves_the_model_as_it_was(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException], at: int
) -> None:
    model = net()
    before = Snapshot(model)
    given, calls = _working_copy.factor, iter(range(99))

    def factor(*args: Any) -> Any:
        if next(calls) == at:
            raise error
        return given(*args)

    monkeypatch.setattr(_working_copy, "factor", factor)
    with pytest.raises(error):
        compress_(model, keep_params=0.5, calibration=data(), affine=True, skip=[])
    before.check()


def test_a_bad_argument_leaves_the_model_as_it_was() -> None:
    model = net()
    before = Snapshot(model)
    for options in ({}, {"keep_params": 0.5, "calibration": []}, {"keep_params": 2}):
        with pytest.raises(ArgumentError):
            compress_(model, **options)  # type: ignore[arg-type]
        before.check()


def test_a_model_that_is_itself_the_layer_is_refused() -> None:
    layer = nn.Linear(32, 32)
    before = Snapshot(layer)
    with pytest.raises(ArgumentError, match=r"model is a Linear, one layer.*use compress"):
        compress_(layer, keep_params=0.5)
    before.check()
