"""Passes over the examples: what the layers are called with, and how long they take on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from tensorlrf.compression._latency import (
    TORCH,
    comes_channels_last,
    layout_of,
    pick,
    resident_bytes,
    time_layer,
)
from tensorlrf.compression._progress import progress_bar
from tensorlrf.compression.calibration.batches import call
from tensorlrf.compression.tuning._tuning import BucketTiming
from tensorlrf.errors import TensorlrfError, UnsupportedError
from tensorlrf.nn import FactoredLayer
from tensorlrf.ops.buckets import bucket


@dataclass
class Calls:
    """The calls of a layer in one bucket of rows: how many, and where the one with the most rows
    was: the example, the number of the call in its pass, and whether it came channels last."""

    calls: int = 0
    rows: int = 0
    example: int = 0
    call: int = 0
    channels_last: bool = False

    def add(self, layer: FactoredLayer, x: Tensor, rows: int, example: int, nth: int) -> None:
        """One more."""
        self.calls += 1
        if rows > self.rows:
            self.rows, self.example, self.call = rows, example, nth
            self.channels_last = comes_channels_last(layer, x)


Seen = dict[FactoredLayer, dict[int, Calls]]
"""Layer -> bucket of rows -> its calls there."""


def record(model: nn.Module, layers: list[FactoredLayer], examples: list[Any]) -> Seen:
    """What each layer is called with."""
    recorder = _Recorder()
    for k, batch in enumerate(examples):
        _run(model, layers, batch, k, recorder)
    return recorder.seen


@dataclass(frozen=True)
class _Recorder:
    seen: Seen = field(default_factory=dict)

    def __call__(self, layer: FactoredLayer, x: Tensor, example: int, nth: int) -> None:
        rows = layer._rows(x)
        if rows:
            calls = self.seen.setdefault(layer, {}).setdefault(bucket(rows), Calls())
            calls.add(layer, x, rows, example, nth)


def measure(
    model: nn.Module,
    places: dict[FactoredLayer, list[str]],
    freezable: Container[FactoredLayer],
    seen: Seen,
    examples: list[Any],
    seconds: float,
    progress: bool,
) -> dict[FactoredLayer, list[BucketTiming]]:
    """Times of each layer in each of its buckets, in ascending order."""
    wanted = {(layer, one.example, one.call): one for layer in seen for one in seen[layer].values()}
    with progress_bar("tune", len(wanted), progress) as advance:
        names = {layer: all_names[0] for layer, all_names in places.items()}
        stopwatch = _Stopwatch(wanted, names, freezable, seconds, advance)
        for k, batch in enumerate(examples):
            here = {layer for layer, example, _ in wanted if example == k}
            if here:
                _run(model, [layer for layer in places if layer in here], batch, k, stopwatch)
    return {
        layer: sorted(rows, key=lambda one: one.bucket) for layer, rows in stopwatch.timed.items()
    }


@dataclass(frozen=True)
class _Stopwatch:
    """Times layers in the calls that are `wanted`: (layer, example, number of the call)."""

    wanted: Mapping[tuple[FactoredLayer, int, int], Calls]
    names: Mapping[FactoredLayer, str]
    freezable: Container[FactoredLayer]
    seconds: float
    advance: Callable[[str], None]
    timed: dict[FactoredLayer, list[BucketTiming]] = field(default_factory=dict)

    def __call__(self, layer: FactoredLayer, x: Tensor, example: int, nth: int) -> None:
        one = self.wanted.get((layer, example, nth))
        if one is not None:
            name = self.names[layer]
            timing = _time(layer, x, one, self.seconds, layer in self.freezable, name)
            self.timed.setdefault(layer, []).append(timing)
            self.advance(name)


def layout_for(layer: FactoredLayer, seen: Seen) -> torch.memory_format:
    """Of a dense weight for the inputs that the layer has seen."""
    return layout_of(layer, any(one.channels_last for one in seen[layer].values()))


Called = Callable[[FactoredLayer, Tensor, int, int], None]
"""Told a layer, its input, the example and the number of the call."""


def _run(
    model: nn.Module, layers: list[FactoredLayer], batch: Any, example: int, called: Called
) -> None:
    """One pass that tells `called` of each call of these layers.

    Each draws the same random numbers, so that all take the same course.
    """
    hook = _Hook(example, called)
    with ExitStack() as handles:
        for layer in layers:
            # After the layer has run: what it cannot take it has then refused in its own words.
            handle = layer.register_forward_hook(hook, with_kwargs=True)
            handles.callback(handle.remove)
        call(model, batch, example, "example")


@dataclass(frozen=True)
class _Hook:
    """Numbers the calls of each layer in one pass."""

    example: int
    called: Called
    counts: Counter[FactoredLayer] = field(default_factory=Counter)

    def __call__(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        nth = self.counts[layer]
        self.counts[layer] += 1
        with _disable_current_modes():  # that of the draws would take part in what is timed
            self.called(layer, x, self.example, nth)


def _time(
    layer: FactoredLayer, x: Tensor, one: Calls, seconds: float, freeze: bool, name: str
) -> BucketTiming:
    try:
        timings = time_layer(layer, x, seconds, freeze=freeze)
    except TensorlrfError as error:
        error.add_note(f"while timing {name}")
        raise
    except Exception as error:
        raise UnsupportedError(
            f"model: a path of {name} cannot be timed on its input {tuple(x.shape)}: "
            f"{type(error).__name__}: {error}. Give a smaller example, or leave the model untuned"
        ) from error
    held = resident_bytes(layer, freeze=freeze)
    chosen = pick(timings, {path: held[path] for path in layer.timed_paths})
    fastest = pick(timings, {way: held[way] for way in timings.samples})
    seconds_of = {path: timings.median(path) for path in layer.timed_paths}
    # Of parametrised factors torch has no layer; an embedding has no time on the path "dense".
    dense = next((way for way in (TORCH, "dense") if way in timings.samples), chosen)
    return BucketTiming(
        bucket=bucket(one.rows),
        rows=one.rows,
        input=tuple(x.shape),
        calls=one.calls,
        seconds=seconds_of,
        dense_seconds=timings.median(dense),
        chosen=chosen,
        dense_wins=fastest in (TORCH, "dense"),
    )
