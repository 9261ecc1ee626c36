"""How long layers and models take: measured against each other, never alone."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from tensorlrf.compression.calibration.batches import call
from tensorlrf.compression.calibration.draws import OwnDraws
from tensorlrf.nn import FactoredLayer
from tensorlrf.nn.copies import replica
from tensorlrf.nn.memory_format import CHANNELS_LAST, is_channels_last
from tensorlrf.nn.stock import to_dense_layer
from tensorlrf.ops import Timings, time_calls

TORCH = "torch"
"""Among the timed calls of a layer, torch's own layer with the rebuilt weight."""

LEAST_GAP, MOST_GAP = 0.02, 0.05
"""Paths closer than the first are the same, paths further apart than the second are not; between
the two it depends on how much the samples scatter."""

HOPELESS = 3.0
"""A path that takes so many times as long as the fastest is not measured closer: some formats have
paths whose five samples would take minutes over a model."""


def time_layer(layer: FactoredLayer, x: Tensor, seconds: float, *, freeze: bool) -> Timings:
    """Times the paths that the layer lets itself be timed on, and torch's own layer, on the input
    x, in turn, without grad. The path "dense" keeps its weight with `freeze`, else rebuilds it.

    Each is a call of forward on a twin of the layer, so that its host time counts, and the layer is
    not touched. Everything is timed hot: the weights of one layer may be in cache that would not be
    between the layers of a model.
    """
    calls: dict[str, Callable[[], object]] = {}
    dense = torch_layer(layer, channels_last=comes_channels_last(layer, x))
    if dense is not None:
        calls[TORCH] = lambda: dense.forward(x)
    for path in layer.timed_paths:
        twin = layer._on_path(path)
        if path == "dense" and freeze:
            twin.freeze(memory_format=layout_of(layer, comes_channels_last(layer, x)))
        calls[path] = _call(twin, x)
    with torch.no_grad():
        return time_calls(calls, seconds=seconds, device=x.device, hopeless=HOPELESS)


def torch_layer(layer: FactoredLayer, *, channels_last: bool) -> nn.Module | None:
    """Torch's dense layer in its place, on request with a kernel in channels_last; None for
    parametrised factors, whose weight is no parameter."""
    if is_parametrized(layer):
        return None
    dense = to_dense_layer(layer)
    if channels_last:
        dense.to(memory_format=layout_of(layer, channels_last))  # type: ignore[call-overload]
    return dense


def layout_of(layer: FactoredLayer, channels_last: bool) -> torch.memory_format:
    """That of a dense weight for inputs which lie so."""
    return CHANNELS_LAST[len(layer.factors.shape)] if channels_last else torch.contiguous_format


def comes_channels_last(layer: FactoredLayer, x: Tensor) -> bool:
    """Whether a batch x for a convolution lies in channels_last and not otherwise."""
    return x.ndim == len(layer.factors.shape) and is_channels_last(x)


def pick(timings: Timings, held: Mapping[str, int]) -> str:
    """The fastest of the names in `held`, by the median; among those that are as fast as it within
    the noise, the one that holds the fewest bytes."""
    best = min(held, key=timings.median)
    tied = [name for name in held if _ties(timings.samples[name], timings.samples[best])]
    return min(tied, key=lambda name: (held[name], timings.median(name)))


def resident_bytes(layer: FactoredLayer, *, freeze: bool) -> dict[str, int]:
    """Bytes that each way of running the layer keeps in memory: the factors, for the path "dense"
    of a layer that is to be frozen its weight as well, for torch's own layer that weight alone."""
    factors = layer.factors
    dense = factors.dtype.itemsize
    for n in factors.shape:
        dense *= n
    more = dense if freeze else 0
    held = {path: factors.n_bytes + more * (path == "dense") for path in layer.paths}
    return {**held, TORCH: dense}


def times_of(
    layer: nn.Module, factored: Sequence[FactoredLayer], x: Tensor, *, seconds: float
) -> tuple[float, list[tuple[float, str]]]:
    """(seconds a call of `layer`; of each factored layer in its place the seconds on its fastest
    factored path, and that path), all in turn on x.

    For planning: the path "dense" of a factored layer is none of the candidates. Takes about
    `seconds`; no layer is changed.
    """
    calls: dict[str, Callable[[], object]] = {TORCH: lambda: layer.forward(x)}
    names: list[dict[str, str]] = []  # of each layer's paths, those of the first as they are
    for k, one in enumerate(factored):
        paths = {f"{path} {k}" if k else path: path for path in one.paths if path != "dense"}
        calls |= {name: _call(one._on_path(path), x) for name, path in paths.items()}
        names.append(paths)
    with torch.no_grad():
        timings = time_calls(calls, seconds=seconds, device=x.device, hopeless=HOPELESS)
    best = [min(own, key=timings.median) for own in names]
    return timings.median(TORCH), [
        (timings.median(name), own[name]) for name, own in zip(best, names, strict=True)
    ]


def measure_model(
    dense: nn.Module, small: nn.Module, batches: Sequence[Any], seconds: float = 2.0
) -> tuple[float, float]:
    """(seconds, seconds) of a pass over all batches through the one model and through the other.

    The passes run in turn, in eval mode without grad, for about `seconds` in all; medians. Models,
    batches and torch's generators stay as they are. Raises ArgumentError, with the model's own
    error in it, where a model cannot take a batch.
    """
    device = next((p.device for p in dense.parameters()), torch.device("cpu"))
    models = {"dense": replica(dense), "small": replica(small)}
    calls = {name: timed_passes(model, batches) for name, model in models.items()}
    timings = time_calls(calls, seconds=seconds, device=device)
    return timings.median("dense"), timings.median("small")


def timed_passes(model: nn.Module, batches: Sequence[Any]) -> Callable[[], None]:
    """Passes of a model, which is a replica, over all batches, to be timed. What it draws is the
    same in all of them, so that they take the same course.

    Raises ArgumentError, with the model's own error in it, where the model cannot take a batch.
    """
    drawn = [OwnDraws(k) for k in range(len(batches))]
    for k, batch in enumerate(batches):
        call(model, batch, k, "example", drawn[k])
    # Drawing of our own takes time in every op, so it is left out where nothing is drawn.
    steady = not any(one.drew for one in drawn)

    def passes() -> None:
        for k, batch in enumerate(batches):
            call(model, batch, k, "example", contextlib.nullcontext() if steady else None)

    return passes


def _call(twin: FactoredLayer, x: Tensor) -> Callable[[], object]:
    # The forward of the class: one that is set on the instance knows the layer, not the twin.
    forward = type(twin).forward
    return lambda: forward(twin, x)


def _ties(samples: Sequence[float], best: Sequence[float]) -> bool:
    """Whether a path is as fast as the fastest one, by the ratios of samples of the same rounds.

    The median of n ratios with the median absolute deviation d has a standard error of about
    1.86 d / sqrt(n), were they normal; two of those are noise.
    """
    # A hopeless path was given up after the first rounds.
    ratios = [a / b for a, b in zip(samples, best, strict=False)]
    middle = statistics.median(ratios)
    scatter = statistics.median(abs(ratio - middle) for ratio in ratios)
    noise = 2 * 1.86 * scatter / math.sqrt(len(ratios))
    return middle <= 1 + min(MOST_GAP, max(LEAST_GAP, noise))
