"""Which layers a forward pass calls, in which order, and what the modules around them are called
with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from tensorlrf.compression.calibration._dense_layer import dense_layer_at, module_at
from tensorlrf.compression.calibration._shared_inputs import Identity
from tensorlrf.compression.calibration._trace import Watch
from tensorlrf.compression.calibration.batches import Batch, call, fresh
from tensorlrf.nn.copies import replica
from tensorlrf.nn.resized.layers import tensors_in


@dataclass(frozen=True)
class Call:
    """Of a linear layer.

    name    of the layer
    source  tells its input from other tensors; None where that cannot be told
    """

    name: str
    source: Identity | None


@dataclass
class _Calls:
    found: list[Call] = field(default_factory=list)

    def __call__(self, name: str, x: Tensor) -> None:
        self.found.append(Call(name, Identity.of(x)))


def linear_calls(model: nn.Module, names: Sequence[str], batch: Batch) -> list[Call]:
    """The calls of the linear ones of the named layers in one pass, in order."""
    calls, own = _Calls(), replica(model)
    linear = [name for name in names if dense_layer_at(own, name).taps is None]
    with Watch(own, linear, calls):
        call(own, batch)
    return calls.found


def called_with_tensors(model: nn.Module, batch: Batch) -> list[str]:
    """Modules that have tensors of their own, in the order in which one pass calls them."""
    own, found = replica(model), list[str]()
    with ExitStack() as stack:
        for name, module in own.named_modules():
            if name and tensors_in(module):
                handle = module.register_forward_pre_hook(partial(_note, found, name))
                stack.callback(handle.remove)
        call(own, batch)
    return found


def _note(found: list[str], name: str, _: nn.Module, args: tuple[Any, ...]) -> None:
    found.append(name)


@dataclass
class _Arguments:
    """A hook before the forward of a module, which keeps the arguments of its first call."""

    name: str
    kept: dict[str, Batch]

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if self.name not in self.kept:
            args, kwargs = fresh((args, dict(kwargs)))
            self.kept[self.name] = Batch(args, kwargs, 0)


def arguments_of(model: nn.Module, names: Iterable[str], batch: Batch) -> dict[str, Batch]:
    """Of each named module that a pass calls the arguments of its first call, copied."""
    own, kept = replica(model), dict[str, Batch]()
    with ExitStack() as stack:
        for name in names:
            hook = _Arguments(name, kept)
            handle = module_at(own, name).register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        call(own, batch)
    return kept
