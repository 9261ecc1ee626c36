"""To the outputs of which layers a model adds what another module was called with."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression.calibration._beside import first_input
from tensorlrf.compression.calibration._dense_layer import module_at
from tensorlrf.compression.calibration.batches import Batch, call
from tensorlrf.nn.copies import replica

BEFORE, BEHIND = 64, 16
"""Calls of modules before the sum is made, and until it is used, among which it is looked for."""

HEAD = 256
"""Numbers that tell most tensors apart."""


def residuals(model: nn.Module, names: Collection[str], batch: Batch) -> dict[str, str]:
    """Layer -> the module whose input is added to its outputs, each for one layer, by one pass: a
    module behind is called with just that sum."""
    own = replica(model)
    calls = _Calls()
    with ExitStack() as stack:
        for name, module in own.named_modules():
            if name:
                hook = module.register_forward_pre_hook(
                    partial(calls.arrived, name), with_kwargs=True
                )
                stack.callback(hook.remove)
        for name in names:
            hook = module_at(own, name).register_forward_hook(partial(calls.left, name))
            stack.callback(hook.remove)
        call(own, batch)
    return calls.found


@dataclass
class _Calls:
    """Of one pass so far.

    recent  modules called last, and their inputs
    open    layers whose outputs nobody has used yet: these, what came before, calls behind
    """

    found: dict[str, str] = field(default_factory=dict)
    recent: deque[tuple[str, Tensor]] = field(default_factory=lambda: deque(maxlen=BEFORE))
    open: dict[str, _Sum] = field(default_factory=dict)

    def arrived(
        self, name: str, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        z = first_input(args, kwargs)
        if z is None or not z.is_floating_point():
            return
        for layer, own in list(self.open.items()):
            source = own.source(z)
            own.left -= 1
            if source is not None and source not in self.found.values():
                self.found[layer] = source
            if source is not None or not own.left:
                del self.open[layer]
        self.recent.append((name, z))

    def left(self, name: str, _: nn.Module, args: tuple[Any, ...], y: Any) -> None:
        if isinstance(y, Tensor) and name not in self.found:
            self.open[name] = _Sum(y, [(n, r) for n, r in self.recent if r.shape == y.shape])


@dataclass
class _Sum:
    y: Tensor
    before: list[tuple[str, Tensor]]
    left: int = BEHIND

    def source(self, z: Tensor) -> str | None:
        """Of what is added where z is a sum with y: the last one."""
        if z.shape != self.y.shape or z.dtype != self.y.dtype:
            return None
        for name, r in reversed(self.before):
            few = [t.flatten()[:HEAD] for t in (z, self.y, r)]
            if torch.equal(few[0], few[1] + few[2]) and torch.equal(z, self.y + r):
                return name
        return None
