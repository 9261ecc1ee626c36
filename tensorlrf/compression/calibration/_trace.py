"""Which layers a forward pass calls, in which order, and on what."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tensorlrf.compression._survey import ROOT
from tensorlrf.compression.calibration._dense_layer import DenseLayer, dense_layer_at
from tensorlrf.compression.calibration._reads import watch_readers
from tensorlrf.compression.calibration._shared_inputs import Identity
from tensorlrf.compression.calibration.batches import Batch, call
from tensorlrf.errors import ArgumentError
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.nn.copies import replica
from tensorlrf.nn.packed.unpacked import Unpacked

READ = "its weight is read by {}, which does not call it"
"""Why a layer stays, for its reader."""

Arrived = Callable[[str, Tensor], None]
"""Told of each call of a layer: its name, and its input."""


@dataclass(frozen=True)
class Trace:
    """What one forward pass did.

    calls    how often each layer was called, in the order of the last calls; none of `readers`
    inputs   the input shapes of those calls
    readers  layers whose weights somebody else computed with, and who did
    after    layers that are called once, and on the very same tensor as the one before: that one
    again    layers called several times, whose earlier calls stay as they were when the weight
             changes at a later one
    """

    calls: dict[str, int]
    inputs: dict[str, list[tuple[int, ...]]]
    readers: dict[str, str]
    after: dict[str, str]
    again: frozenset[str] = frozenset()


def record(
    model: nn.Module, names: list[str], batch: Batch, argument: str = "calibration"
) -> Trace:
    """Run the first batch and see in which order the layers are called, and on what; `argument` is
    what the user knows it by."""
    calls = _Calls()
    own = replica(model)
    layers = {name: dense_layer_at(own, name).module for name in names}
    with (
        watch_readers(own, layers) as readers,
        Watch(own, names, calls),
        _forwards(own, names) as forwards,
    ):
        call(own, batch, argument=argument)
    return calls.trace(readers.found, forwards)


@dataclass
class _Calls:
    """The calls of one pass so far.

    inputs  layer -> the shapes of its inputs, in the order of the last calls
    after   layer -> the one called just before it, on the very same tensor
    """

    inputs: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)
    after: dict[str, str] = field(default_factory=dict)
    last: tuple[str, Identity | None] = ("", None)

    def __call__(self, name: str, x: Tensor) -> None:
        # Taken out and put back in, so that the order is that of the last calls.
        self.inputs[name] = [*self.inputs.pop(name, []), tuple(x.shape)]
        identity = Identity.of(x)
        if identity is not None and identity == self.last[1]:
            self.after[name] = self.last[0]
        self.last = name, identity

    def trace(self, readers: dict[str, str], forwards: Mapping[str, int]) -> Trace:
        """What these calls come to, with the `forwards` of modules that renew such calls within
        one."""
        calls = {n: len(shapes) for n, shapes in self.inputs.items() if n not in readers}
        after = {n: one for n, one in self.after.items() if calls.get(n) == calls.get(one) == 1}
        again = {n for n, k in calls.items() if min(k, forwards.get(_owner(n), k)) > 1}
        return Trace(calls, self.inputs, readers, after, frozenset(again))


def _owner(name: str) -> str:
    """The module that a layer is a child of."""
    return name.rpartition(".")[0]


@contextlib.contextmanager
def _forwards(model: nn.Module, names: list[str]) -> Iterator[Counter[str]]:
    """How often the owners of these layers are called that make good, within one forward, what a
    weight gave which changes on the way."""
    found, handles = Counter[str](), list[RemovableHandle]()
    for owner in {_owner(name) for name in names if name != ROOT}:
        module = model.get_submodule(owner)
        if isinstance(module, Unpacked) and module.renews:
            count = partial(_count, found, owner)
            handles.append(module.register_forward_pre_hook(count))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _count(found: Counter[str], name: str, _: nn.Module, args: tuple[Any, ...]) -> None:
    found[name] += 1


class Watch:
    """Calls `arrived(name, input)` before each call of the named layers, while it is entered."""

    def __init__(self, model: nn.Module, names: list[str], arrived: Arrived) -> None:
        self._layers = {name: dense_layer_at(model, name) for name in names}
        self._arrived = arrived
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> None:
        for name, layer in self._layers.items():
            hook = self._hook(name, layer)
            self._handles.append(layer.module.register_forward_pre_hook(hook, with_kwargs=True))

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str, layer: DenseLayer) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            x = args[0] if args else next(iter(kwargs.values()), None)
            # What the layer cannot take is left to the layer, which says so better.
            if isinstance(x, Tensor) and layer.fits(x):
                _check_device(name, layer, x)
                with without_autocast():  # the model may have one of its own
                    self._arrived(name, x)

        return hook


def _check_device(name: str, layer: DenseLayer, x: Tensor) -> None:
    if x.device != layer.device:
        raise ArgumentError(
            f"calibration: the input of {name} is on {x.device} but its weight is on "
            f"{layer.device}; move the batches to the device of the model"
        )
