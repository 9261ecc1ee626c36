"""How long layers take: each is timed at a few ranks, on the inputs that a batch brings it.

Times are made monotone (Ayer et al. 1955), and interpolated along the parameters between.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tensorlrf.compression._latency import times_of
from tensorlrf.compression.calibration._dense_layer import DenseLayer, dense_layer_at
from tensorlrf.compression.calibration.batches import Batch
from tensorlrf.compression.plan._drafts import Draft
from tensorlrf.compression.plan._stand_ins import blank_inputs, factored_layer, filled
from tensorlrf.decomposition.configs import Structured
from tensorlrf.errors import ArgumentError
from tensorlrf.nn.copies import replica
from tensorlrf.ops.buckets import bucket

TIMED = 5
"""Ranks of a layer that are timed, at the most."""

SECONDS = 0.4
"""That the timing of a layer takes, about."""


@dataclass(frozen=True)
class Sample:
    """A batch of what the model will run on, and the argument that it came by."""

    batch: Batch
    argument: str


@dataclass(frozen=True)
class CallTimes:
    """Of one call of a layer.

    rows     bucket of the rows M that it has
    dense    seconds as it is
    sizes    parameters of factors, rising
    seconds  on these, not falling
    paths    the fastest one of each
    """

    rows: int
    dense: float
    sizes: tuple[float, ...]
    seconds: tuple[float, ...]
    paths: tuple[str, ...]

    def at(self, params: float) -> float:
        """Seconds on factors of so many parameters."""
        return between(self.sizes, self.seconds, params)

    def path_at(self, params: float) -> str:
        """That of the nearest size."""
        apart = [abs(size - params) for size in self.sizes]
        return self.paths[apart.index(min(apart))]


@dataclass(frozen=True)
class LayerTimes:
    """Of a layer in one pass of the model: its calls that are alike, and how many there are."""

    calls: tuple[tuple[CallTimes, int], ...]

    @property
    def dense(self) -> float:
        """Seconds of all calls as it is; 0 where the pass does not reach it."""
        return sum(count * one.dense for one, count in self.calls)

    def at(self, params: float) -> float:
        """Seconds of all calls on factors of so many parameters."""
        return sum(count * one.at(params) for one, count in self.calls)

    def paths_at(self, params: float) -> dict[int, str]:
        """Bucket of rows -> the fastest path of such factors."""
        return {one.rows: one.path_at(params) for one, _ in self.calls}


def seconds_of(
    argument: str, model: nn.Module, drafts: Sequence[Draft], sample: Sample
) -> list[LayerTimes]:
    """Of each draft, which is to be factored.

    Raises ArgumentError, naming the argument that asks for times, for a method whose sizes only the
    fit can tell.
    """
    for draft in drafts:
        check_sizes(argument, draft, structured=True)
    working = replica(model)
    layers = {draft.name: dense_layer_at(working, draft.name) for draft in drafts}
    names_of = {layer.module: name for name, layer in layers.items()}
    inputs = blank_inputs(working, names_of, sample.batch, sample.argument)
    clock, found = _Clock(), []
    for draft in drafts:
        blanks = inputs.get(draft.name, [])
        layouts = Counter((tuple(x.shape), x.stride(), x.dtype) for x in blanks)
        calls = []
        for (shape, stride, dtype), count in layouts.items():
            blank = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
            calls.append((clock.times(layers[draft.name], draft, blank), count))
        found.append(LayerTimes(tuple(calls)))
    return found


def check_sizes(argument: str, draft: Draft, *, structured: bool) -> None:
    """Raise ArgumentError where only the fit tells the sizes; `structured` formats pass."""
    method = draft.method
    assert method is not None
    if method.by_share and not (structured and isinstance(method, Structured)):
        raise ArgumentError(
            f"{argument}= looks at layers at their rank, but the sizes of {draft.name} as {method} "
            "are decided by the fit; give keep_params=, or method='svd', 'tucker' or 'cp'"
        )


@dataclass
class _Clock:
    """Times of layers that have been found so far; what is alike is timed once."""

    known: dict[Hashable, CallTimes] = field(default_factory=dict)

    def times(self, layer: DenseLayer, draft: Draft, blank: Tensor) -> CallTimes:
        """Of one call on an input of this shape and layout."""
        layout = (tuple(blank.shape), blank.stride(), blank.dtype)
        key = (layer.plain, layer.shape, layer.weight.dtype, draft.method, layout)
        if key not in self.known:
            self.known[key] = self._timed(layer, draft, blank)
        return self.known[key]

    def _timed(self, layer: DenseLayer, draft: Draft, blank: Tensor) -> CallTimes:
        assert draft.ladder is not None
        rungs = draft.ladder.rungs
        at = spread(len(rungs), TIMED)
        layers = [factored_layer(layer, draft.method_at(rungs[k])) for k in at]
        x = filled(blank, layer.device)
        dense, times = times_of(layer.module, layers, x, seconds=SECONDS)
        rising = monotone([seconds for seconds, _ in times])
        sizes = tuple(float(rungs[k].params) for k in at)
        paths = tuple(path for _, path in times)
        return CallTimes(bucket(layers[0]._rows(x)), dense, sizes, tuple(rising), paths)


def spread(n: int, most: int) -> list[int]:
    """At most so many of n places, the first and the last among them, evenly apart."""
    if n <= most:
        return list(range(n))
    return sorted({round(k * (n - 1) / (most - 1)) for k in range(most)})


def monotone(values: Sequence[float]) -> list[float]:
    """The sequence that does not fall and is nearest in squares: neighbours that fall are pooled
    (Ayer et al. 1955)."""
    pools: list[tuple[float, int]] = []
    for value in values:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (high, n), (low, m) = pools.pop(-2), pools.pop()
            pools.append(((n * high + m * low) / (n + m), n + m))
    return [mean for mean, count in pools for _ in range(count)]


def between(places: Sequence[float], values: Sequence[float], at: float) -> float:
    """Linear between the places, which rise, and constant beyond."""
    above = bisect_right(places, at)
    if above == 0 or above == len(places):
        return values[0] if above == 0 else values[-1]
    part = (at - places[above - 1]) / (places[above] - places[above - 1])
    return (1 - part) * values[above - 1] + part * values[above]
