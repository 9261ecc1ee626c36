"""How recurrent modules go from step to step, by measurement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from tensorlrf.compression.calibration.batches import call
from tensorlrf.compression.tuning._tuning import RecurrenceTiming
from tensorlrf.nn.copies import replica
from tensorlrf.nn.packed.recurrent import KERNEL, LOOP, FactoredRecurrent
from tensorlrf.ops import time_calls


def choose_recurrences(
    model: nn.Module, examples: list[Any], seconds: float
) -> tuple[RecurrenceTiming, ...]:
    """Set each recurrent module of a model, whose layers are tuned, to its faster way, by its first
    call with the examples; one that none reaches stays as it is."""
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
            found = _timed(twin, *seen.calls[name], seconds)
            modules[name].recurrence = min(found, key=found.__getitem__)
            rows.append(RecurrenceTiming(name, found, modules[name].recurrence))
    return tuple(rows)


@dataclass
class _Seen:
    """A hook that keeps the first call of each module."""

    names: dict[nn.Module, str]
    calls: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.calls.setdefault(self.names[module], (args, kwargs))


def _timed(module: Any, args: Any, kwargs: Any, seconds: float) -> dict[str, float]:
    """Median seconds of a call by either way."""
    calls: dict[str, Callable[[], object]] = {
        way: partial(_run, module, way, args, kwargs) for way in (KERNEL, LOOP)
    }
    device = next(module.parameters()).device
    with torch.no_grad():
        timings = time_calls(calls, seconds=seconds, device=device)
    return {way: timings.median(way) for way in calls}


def _run(module: Any, way: str, args: Any, kwargs: Any) -> object:
    module.recurrence = way
    return module(*args, **kwargs)
