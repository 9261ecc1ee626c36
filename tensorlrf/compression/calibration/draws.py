"""Random numbers of our own for code that draws from torch's generators.

These belong to the whole process: to set one back afterwards would have other threads draw the
same numbers twice. So they are not touched at all.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tensorlrf.compression.calibration.dispatch import ThreadMode


class OwnDraws(ThreadMode):  # type: ignore[no-untyped-call]  # torch's hook has no types
    """While it is entered, what this thread draws comes from generators made for it.

    They are seeded with `index` more than the seed that torch's own was last given, so that passes
    of one batch through two models take the same course. Processes that are forked meanwhile, as by
    a DataLoader, draw as they would; so do attention kernels with dropout, which take no generator.
    """

    def __init__(self, index: int = 0) -> None:
        super().__init__()
        self._index = index
        self._process = os.getpid()
        self._generators: dict[torch.device, torch.Generator] = {}

    @property
    def drew(self) -> bool:
        """Whether anything was drawn."""
        return bool(self._generators)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        draws = torch.Tag.nondeterministic_seeded in func.tags
        if not draws or kwargs.get("generator") is not None or os.getpid() != self._process:
            return func(*args, **kwargs)
        if func is torch.ops.aten.native_dropout.default:
            return self._dropout(*args, **kwargs)
        drawn = _with_generator(func)
        if drawn is None:
            return func(*args, **kwargs)
        tensors = (t for t in (*args, *kwargs.values()) if isinstance(t, Tensor))
        first = next(tensors, None)
        device = torch.device(kwargs.get("device") or ("cpu" if first is None else first.device))
        if device.type == "meta":
            return func(*args, **kwargs)
        return drawn(*args, **kwargs, generator=self._on(device))

    def _on(self, device: torch.device) -> torch.Generator:
        """The generator of a device."""
        if device not in self._generators:
            own = torch.Generator(device)
            own.manual_seed((torch.initial_seed() + self._index) % 2**63)
            self._generators[device] = own
        return self._generators[device]

    def _dropout(self, x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
        """The one op that drops out on a GPU, which takes no generator either."""
        if train is False or p == 0:
            return x.clone(), torch.ones_like(x, dtype=torch.bool)
        mask = torch.empty_like(x, dtype=torch.bool)
        mask.bernoulli_(1 - p, generator=self._on(x.device))
        return x * mask * (1 / (1 - p) if p < 1 else 0.0), mask


@cache
def _with_generator(func: Any) -> Any:
    """The overload of an op that takes a generator, with the same arguments otherwise."""
    wanted = [a.name for a in func._schema.arguments if a.name != "generator"]
    others = (getattr(func.overloadpacket, name) for name in func.overloadpacket.overloads())
    for one in (func, *others):
        names = [a.name for a in one._schema.arguments]
        if "generator" in names and [n for n in names if n != "generator"] == wanted:
            return one
    return None
