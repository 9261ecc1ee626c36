"""How recurrent modules go from step to step, by measurement."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from tensorlrf.compression.calibration.batches import call
from tensorlrf.compression.tuning._tuning import RecurrenceTiming
from tensorlrf.nn import FactoredLayer
from tensorlrf.nn.copies import replica
from tensorlrf.nn.packed.recurrent import INPUT, KERNEL, LOOP, FactoredRecurrent
from tensorlrf.ops import PathTable, time_calls

FROZEN = "kernel, frozen"
"""torch's kernel on a dense matrix that is kept in place of made in each call."""

GAIN = 1.05
"""Times that it has to be faster, as it takes memory."""


def choose_recurrences(
    model: nn.Module, examples: list[Any], seconds: float, *, freeze: bool
) -> tuple[RecurrenceTiming, ...]:
    """Set each recurrent module of a model, whose layers are tuned, to its fastest way, by the
    first call with the examples; one that none reaches stays as it is. With `freeze` its recurrent
    layers may keep their dense weights, where torch's kernel has use for them."""
    modules = {n: m for n, m in model.named_modules() if isinstance(m, FactoredRecurrent)}
    if not modules:
        return ()
    own = replica(model)
    twins = {own.get_submodule(name): name for name in modules}
    seen = _Seen(twins)
    handles = [m.register_forward_pre_hook(seen, with_kwargs=True) for m in twins]
    for batch in examples:
        call(own, batch, argument="example")
    for handle in handles:
        handle.remove()
    rows = []
    for twin, name in twins.items():
        if name in seen.calls:
            found = _timed(twin, *seen.calls[name], seconds, freeze=freeze)
            way = min((KERNEL, LOOP), key=found.__getitem__)
            if GAIN * found.get(FROZEN, math.inf) < found[way]:
                way = FROZEN
            _settle(modules[name], way)
            rows.append(RecurrenceTiming(name, found, way))
    return tuple(rows)


def _settle(module: FactoredRecurrent, way: str) -> None:
    module.recurrence = KERNEL if way == FROZEN else way
    for layer in _kept(module) if way == FROZEN else ():
        layer.set_measured(layer._key(frozen=True), PathTable.single("dense"))  # for files
        layer.freeze()


def _kept(module: nn.Module) -> list[FactoredLayer]:
    """The layers that torch's kernel takes as dense matrices."""
    return [
        layer
        for name, layer in module.named_children()
        if isinstance(layer, FactoredLayer) and not name.startswith(INPUT) and layer._can_freeze()
    ]


@dataclass
class _Seen:
    """A hook that keeps the first call of each module."""

    names: dict[nn.Module, str]
    calls: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.calls.setdefault(self.names[module], (args, kwargs))


def _timed(
    module: Any, args: Any, kwargs: Any, seconds: float, *, freeze: bool
) -> dict[str, float]:
    """Median seconds of a call by each way."""
    calls: dict[str, Callable[[], object]] = {
        way: partial(_run, module, way, args, kwargs) for way in (KERNEL, LOOP)
    }
    keeps = replica(module)
    if freeze and not all(layer.is_frozen for layer in _kept(keeps)):
        for layer in _kept(keeps):
            layer.freeze()
        calls[FROZEN] = partial(_run, keeps, KERNEL, args, kwargs)
    device = next(module.parameters()).device
    with torch.no_grad():
        timings = time_calls(calls, seconds=seconds, device=device)
    return {way: timings.median(way) for way in calls}


def _run(module: Any, way: str, args: Any, kwargs: Any) -> object:
    module.recurrence = way
    return module(*args, **kwargs)
