"""Sequential calibration: each layer's moments on what the already compressed layers deliver.

The model at hand is a working copy. `calibrated` yields one layer after another with the moments
of its inputs; whoever takes them writes the compressed weight into the copy before asking for the
next one.

Two ways give the same moments. *Suspended*: every batch's forward pass stops at the layer and goes
on from there, so that the whole calibration is one pass a batch, and the activations of all batches
are alive at once. *Rerun*: for each layer all batches run anew up to it, one at a time; one batch's
activations are alive, and L layers cost about L / 2 passes. They differ only behind a layer that is
called several times in a pass: a suspended pass has made its earlier calls with the dense weight.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tensorlrf.compression._batches import call
from tensorlrf.compression._correction import LagMoments
from tensorlrf.compression._moments import Moments, moments_of
from tensorlrf.compression._survey import Layer, layer_at
from tensorlrf.compression._suspend import Suspendable, thread_settings
from tensorlrf.errors import ArgumentError

Arrived = Callable[[str, Tensor], None]


@dataclass(frozen=True)
class Trace:
    """What one forward pass did.

    calls   how often each layer was called, in the order of the last calls
    inputs  the input shapes of those calls
    """

    calls: dict[str, int]
    inputs: dict[str, list[tuple[int, ...]]]


def record(model: nn.Module, names: list[str], batch: Any) -> Trace:
    """Run the first batch and see in which order the layers are called, and on what."""
    inputs: dict[str, list[tuple[int, ...]]] = {}

    def arrived(name: str, x: Tensor) -> None:
        # Taken out and put back in, so that the order is that of the last calls.
        inputs[name] = [*inputs.pop(name, []), tuple(x.shape)]

    with _Watch(model, names, arrived), thread_settings()():
        call(model, batch, 0)
    return Trace({name: len(shapes) for name, shapes in inputs.items()}, inputs)


@dataclass
class Seen:
    """What calibration has seen of one layer.

    moments  of its inputs
    lag      of its outputs behind those of the given model; None where that is not asked for
    """

    moments: Moments
    lag: LagMoments | None = None

    @classmethod
    def of(cls, layer: Layer, *, lags: bool) -> Seen:
        return cls(moments_of(layer), LagMoments(layer) if lags else None)


def calibrated(
    model: nn.Module,
    names: list[str],
    trace: Trace,
    batches: list[Any],
    *,
    rerun: bool,
    original: nn.Module | None = None,
) -> Generator[tuple[str, Seen], None, None]:
    """(name, what was seen of its inputs over all batches), in order of execution.

    Layers that no batch reaches are not yielded. A layer that is called several times in a pass
    is yielded at its last call, with the inputs of all calls. With `original`, the given model runs
    every pass in step, so that the lag behind it is seen too; its activations come on top.
    """
    return (_rerun if rerun else _suspended)(model, names, trace, batches, original)


def _suspended(
    model: nn.Module,
    names: list[str],
    trace: Trace,
    batches: list[Any],
    original: nn.Module | None,
) -> Generator[tuple[str, Seen], None, None]:
    # A layer that the first batch did not call comes first: the others wait on the common course.
    others = [name for name in names if name not in trace.calls]
    position = {name: k for k, name in enumerate([*others, *trace.calls])}
    seen: dict[str, Seen] = {}
    done: set[str] = set()

    def forward(index: int, batch: Any) -> Callable[[Suspendable], None]:
        def run(this: Suspendable) -> None:
            calls: Counter[str] = Counter()

            def arrived(name: str, x: Tensor) -> None:
                x0 = None if ahead is None else ahead.input_of(name)
                if name in done:
                    return
                _add(seen, name, own, x, x0)
                del x0
                calls[name] += 1
                if calls[name] >= trace.calls.get(name, 1):
                    this.suspend(name)

            own = replica(model)
            with _ahead(original, names, batch, index) as ahead, _Watch(own, names, arrived):
                call(own, batch, index)

        return run

    passes: list[Suspendable] = []
    try:
        passes.extend(Suspendable(forward(k, batch)) for k, batch in enumerate(batches))
        waiting = [one.advance() for one in passes]
        while reached := {name for name in waiting if name is not None}:
            name = min(reached, key=position.__getitem__)
            yield name, seen.pop(name)
            done.add(name)
            for k, one in enumerate(passes):
                if waiting[k] == name:
                    waiting[k] = one.advance()
        # Called less often than in the first pass, so never at its last call.
        yield from seen.items()
    finally:
        for one in passes:
            one.close()


def _rerun(
    model: nn.Module,
    names: list[str],
    trace: Trace,
    batches: list[Any],
    original: nn.Module | None,
) -> Generator[tuple[str, Seen], None, None]:
    for name in [*trace.calls, *(n for n in names if n not in trace.calls)]:
        seen: dict[str, Seen] = {}
        for k, batch in enumerate(batches):
            _run_up_to(model, name, trace.calls.get(name), seen, batch, k, original)
        if name in seen:
            yield name, seen[name]


class _Captured(BaseException):
    """The last input that was wanted has come; the rest of the pass is of no use."""


def _run_up_to(
    model: nn.Module,
    name: str,
    n_calls: int | None,
    seen: dict[str, Seen],
    batch: Any,
    index: int,
    original: nn.Module | None,
) -> None:
    calls = itertools.count(1)

    def arrived(name: str, x: Tensor) -> None:
        _add(seen, name, model, x, None if ahead is None else ahead.input_of(name))
        if next(calls) == n_calls:
            raise _Captured

    try:
        with (
            _ahead(original, [name], batch, index) as ahead,
            _Watch(model, [name], arrived),
            thread_settings()(),
        ):
            call(model, batch, index)
    except _Captured:
        pass


def _add(seen: dict[str, Seen], name: str, model: nn.Module, x: Tensor, x0: Tensor | None) -> None:
    if name not in seen:
        seen[name] = Seen.of(layer_at(model, name), lags=x0 is not None)
    seen[name].moments.add(x)
    lag = seen[name].lag
    if lag is not None and x0 is not None:
        lag.add(x, x0)


class _Ahead:
    """A pass of the given model that stops at each of the named layers and shows its input."""

    def __init__(self, original: nn.Module, names: list[str], batch: Any, index: int) -> None:
        self._input: Tensor | None = None

        def run(this: Suspendable) -> None:
            def arrived(name: str, x: Tensor) -> None:
                self._input = x
                this.suspend(name)

            own = replica(original)
            with _Watch(own, names, arrived):
                call(own, batch, index)

        self._pass = Suspendable(run)

    def input_of(self, name: str) -> Tensor:
        """The input of the next call, which must be one of the layer `name`."""
        reached = self._pass.advance()
        x, self._input = self._input, None
        if reached != name or x is None:
            raise ArgumentError(
                f"target='original' needs a model that takes the same course before and after "
                f"compression, but where {name} is called now the given model calls "
                f"{reached or 'no further layer'}; use target='prefix'"
            )
        return x

    def close(self) -> None:
        self._pass.close()


@contextlib.contextmanager
def _ahead(
    original: nn.Module | None, names: list[str], batch: Any, index: int
) -> Iterator[_Ahead | None]:
    if original is None:
        yield None
        return
    with contextlib.closing(_Ahead(original, names, batch, index)) as ahead:
        yield ahead


class _Watch:
    """Calls `arrived(name, input)` before each call of the named layers, while it is entered."""

    def __init__(self, model: nn.Module, names: list[str], arrived: Arrived) -> None:
        self._layers = {name: layer_at(model, name) for name in names}
        self._arrived = arrived
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> None:
        for name, layer in self._layers.items():
            self._handles.append(
                layer.register_forward_pre_hook(self._hook(name, layer), with_kwargs=True)
            )

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str, layer: Layer) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            x = args[0] if args else kwargs.get("input")
            # What the layer cannot take is left to the layer, which says so better.
            if isinstance(x, Tensor) and _fits(layer, x):
                _check_device(name, layer, x)
                self._arrived(name, x)

        return hook


def _fits(layer: Layer, x: Tensor) -> bool:
    if isinstance(layer, nn.Linear):
        return x.ndim >= 1 and x.shape[-1] == layer.in_features
    return x.ndim in (3, 4) and x.shape[-3] == layer.in_channels


def _check_device(name: str, layer: Layer, x: Tensor) -> None:
    if x.device != layer.weight.device:
        raise ArgumentError(
            f"calibration: the input of {name} is on {x.device} but its weight is on "
            f"{layer.weight.device}; move the batches to the device of the model"
        )


def replica(model: nn.Module) -> nn.Module:
    """The same module tree on the same parameters and buffers.

    Interleaved passes need one each: a model may keep what it has computed on itself.
    """
    shared = itertools.chain(model.parameters(), model.buffers())
    memo: dict[int, Any] = {id(t): t for t in shared}
    return copy.deepcopy(model, memo)


def check_moments(name: str, gram: Tensor) -> None:
    """Raise ArgumentError, naming the layer, where its inputs had NaN or Inf."""
    # A value that is not finite makes the mean square of its column so: n numbers tell it all.
    if not torch.isfinite(gram.diagonal()).all():
        raise ArgumentError(
            f"calibration: the inputs of {name} contain NaN or Inf; look at the batches, and at "
            f"the layers before it, or leave it out with skip=[{name!r}]"
        )
