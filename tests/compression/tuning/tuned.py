"""Small factored models, and a clock that says what a test wants."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

import tensorlrf
from tensorlrf.compression import _latency
from tensorlrf.compression.tuning import _whole
from tensorlrf.nn import FactoredConv2d, FactoredLayer, FactoredLinear
from tensorlrf.ops import Timings

DENSE = {"torch": 2.0, "dense": 1.0, "chain": 3.0}
CHAIN = {"torch": 2.0, "dense": 2.0, "chain": 1.0}
ALIKE = {"torch": 1.0, "dense": 1.0, "chain": 1.01}


def linear(n: int = 16, m: int = 16, rank: int = 4) -> FactoredLinear:
    layer = tensorlrf.nn.factorize(nn.Linear(n, m), "svd", rank)
    assert isinstance(layer, FactoredLinear)
    return layer


def conv() -> FactoredConv2d:
    layer = tensorlrf.nn.factorize(nn.Conv2d(8, 8, 3, padding=1), "svd", 3)
    assert isinstance(layer, FactoredConv2d)
    return layer


def factored(model: nn.Module) -> list[FactoredLayer]:
    return [m for m in model.modules() if isinstance(m, FactoredLayer)]


class Clock:
    """Stands in for `time_calls`: runs each call once and says the next of the given times; the
    last of them again and again. Keeps what it was asked for."""

    def __init__(self, *answers: dict[str, float] | BaseException) -> None:
        self.answers = list(answers)
        self.outputs: list[dict[str, Any]] = []
        self.seconds: list[float] = []

    def __call__(
        self,
        calls: Mapping[str, Callable[[], object]],
        *,
        seconds: float,
        device: object,
        hopeless: float = math.inf,
    ) -> Timings:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.outputs.append({name: call() for name, call in calls.items()})
        self.seconds.append(seconds)
        if isinstance(answer, BaseException):
            raise answer
        return Timings({name: (answer[name],) * 3 for name in calls})


Start = Callable[..., Clock]


class State:
    """All that `tune` may change in a model, or must not."""

    def __init__(self, model: nn.Module) -> None:
        self.values = (
            [(name, id(m)) for name, m in model.named_modules(remove_duplicate=False)],
            [m.training for m in model.modules()],
            [(layer.path_table, layer._own_table, layer._frozen) for layer in factored(model)],
            [dict(layer.measured) for layer in factored(model)],
            [list(m._forward_hooks) for m in model.modules()],
            [(id(p), p._version, p.requires_grad) for p in model.parameters()],
            torch.get_rng_state().tolist(),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, State) and self.values == other.values


WHOLE = {"fastest alone": 1.0, "gain > 10%": 2.0, "gain > 30%": 3.0, "all dense": 4.0}
"""Seconds of the whole model, where every layer does best with what it does best alone."""


def set_clock(monkeypatch: pytest.MonkeyPatch, *answers: dict[str, float] | BaseException) -> Clock:
    """Times of layers are measured by a `Clock` from now on, to the end of the test; of whole
    models by another one, to which the layers' choices are the best."""
    one = Clock(*answers)
    monkeypatch.setattr(_latency, "time_calls", one)
    monkeypatch.setattr(_whole, "time_calls", Clock(WHOLE))
    return one


def set_whole_clock(
    monkeypatch: pytest.MonkeyPatch, *answers: dict[str, float] | BaseException
) -> Clock:
    """Times of whole models are these, one after the other: of all choices, then of the pairs."""
    one = Clock(*answers)
    monkeypatch.setattr(_whole, "time_calls", one)
    return one
