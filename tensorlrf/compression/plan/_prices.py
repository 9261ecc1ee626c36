"""What each rank of a layer costs, in what a budget counts.

Parameters and bytes follow from sizes; FLOPs from the inputs that a batch brings each layer, on the
path that its rows take; times are measured at a few ranks, made monotone (Ayer et al. 1955), and
interpolated along the parameters between.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from tensorlrf.compression._latency import times_of
from tensorlrf.compression._work import work
from tensorlrf.compression.calibration._dense_layer import DenseLayer, dense_layer_at
from tensorlrf.compression.calibration._trace import record
from tensorlrf.compression.calibration.batches import Batch
from tensorlrf.compression.plan._drafts import Draft
from tensorlrf.compression.plan._stand_ins import any_factors, blank_inputs, factored_layer, filled
from tensorlrf.compression.plan._uniform import Scale
from tensorlrf.decomposition.configs import Method, Structured
from tensorlrf.errors import ArgumentError
from tensorlrf.factors import Factors
from tensorlrf.nn.copies import replica
from tensorlrf.ops import best_path, profile_of
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


def prices_of(
    word: str, model: nn.Module, drafts: Sequence[Draft], sample: Sample | None
) -> list[Scale]:
    """Of each draft, which is to be factored, what it costs when dense and at each rung of its
    ladder, by the budget of this word. What the sample does not reach costs nothing.

    Raises ArgumentError where a budget needs a sample and there is none, where none of the layers
    is reached, and for a method whose sizes only the fit can tell.
    """
    if word == "keep_params":
        return [_params(draft, 1) for draft in drafts]
    if word == "keep_bytes":
        return [_params(draft, _weight(draft).element_size()) for draft in drafts]
    if sample is None:
        raise ArgumentError(
            f"{word}= depends on what the layers are called with; give calibration=, of which the "
            "first batch counts, or example=, a batch"
        )
    _check_sizes(word, drafts)
    found = (_flops if word == "keep_flops" else _seconds)(model, drafts, sample)
    if not any(scale.dense for scale in found):
        raise ArgumentError(
            f"{sample.argument}: the batch takes the model through none of the layers that are to "
            f"be factored, so that {word}= has nothing to count"
        )
    return found


def _check_sizes(word: str, drafts: Sequence[Draft]) -> None:
    for draft in drafts:
        method = draft.method
        assert method is not None
        if method.by_share and (word == "keep_flops" or not isinstance(method, Structured)):
            raise ArgumentError(
                f"{word}= looks at layers at their rank, but the sizes of {draft.name} as {method} "
                "are decided by the fit; give keep_params=, or method='svd', 'tucker' or 'cp'"
            )


def _weight(draft: Draft) -> Tensor:
    assert draft.layer is not None
    return draft.layer.weight


def _rungs(draft: Draft) -> list[Method]:
    assert draft.ladder is not None
    return [draft.method_at(rung) for rung in draft.ladder.rungs]


def _params(draft: Draft, size: int) -> Scale:
    assert draft.ladder is not None
    rungs = tuple(size * rung.params for rung in draft.ladder.rungs)
    return Scale(size * draft.ladder.dense, rungs)


# ---- FLOPs ---------------------------------------------------------------------------------------


def _flops(model: nn.Module, drafts: Sequence[Draft], sample: Sample) -> list[Scale]:
    names = [draft.name for draft in drafts]
    trace = record(model, names, sample.batch, sample.argument)
    known: dict[Hashable, Scale] = {}
    found = []
    for draft in drafts:
        layer, inputs = draft.layer, trace.inputs.get(draft.name, [])
        assert layer is not None
        if draft.name in trace.readers or not inputs:
            found.append(Scale(0.0, (0.0,) * len(_rungs(draft))))
            continue
        key = (layer.plain, layer.shape, layer.weight.dtype, draft.method, tuple(inputs))
        if key not in known:
            done = [_work_at(layer, method, inputs) for method in _rungs(draft)]
            known[key] = Scale(done[0][0], tuple(after for _, after in done))
        found.append(known[key])
    return found


def _work_at(
    layer: DenseLayer, method: Method, inputs: Sequence[tuple[int, ...]]
) -> tuple[int, int]:
    """(FLOPs dense, at the method's rank) on inputs of these shapes."""
    values = partial(_blank, layer.weight.dtype)
    factors = any_factors(layer, method, values)
    assert factors is not None
    done = work(layer.plain, factors, inputs, _path_for(layer, factors))
    return done.dense, done.factored


def _blank(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _path_for(layer: DenseLayer, factors: Factors) -> Callable[[int], str]:
    """The path that a new layer takes for so many rows, where the weight is."""
    profile, stride = profile_of(layer.device), layer.plain.stride or None
    return lambda rows: best_path(factors, bucket(rows), stride=stride, profile=profile)


# ---- seconds -------------------------------------------------------------------------------------


@dataclass
class _Clock:
    """Times of layers that have been found so far; what is alike is timed once."""

    known: dict[Hashable, Scale] = field(default_factory=dict)

    def scale(self, layer: DenseLayer, draft: Draft, blank: Tensor) -> Scale:
        """Seconds of one call on an input of this shape and layout, dense and at every rung."""
        layout = (tuple(blank.shape), blank.stride(), blank.dtype)
        key = (layer.plain, layer.shape, layer.weight.dtype, draft.method, layout)
        if key not in self.known:
            self.known[key] = self._timed(layer, draft, blank)
        return self.known[key]

    def _timed(self, layer: DenseLayer, draft: Draft, blank: Tensor) -> Scale:
        assert draft.ladder is not None
        rungs = draft.ladder.rungs
        at = spread(len(rungs), TIMED)
        layers = [factored_layer(layer, draft.method_at(rungs[k])) for k in at]
        dense, times = times_of(layer.module, layers, filled(blank, layer.device), seconds=SECONDS)
        sizes = [float(rungs[k].params) for k in at]
        rising = monotone(times)
        return Scale(dense, tuple(between(sizes, rising, rung.params) for rung in rungs))


def _seconds(model: nn.Module, drafts: Sequence[Draft], sample: Sample) -> list[Scale]:
    working = replica(model)
    dense_layers = {draft.name: dense_layer_at(working, draft.name) for draft in drafts}
    names_of = {layer.module: name for name, layer in dense_layers.items()}
    inputs = blank_inputs(working, names_of, sample.batch, sample.argument)
    clock, found = _Clock(), []
    for draft in drafts:
        blanks = inputs.get(draft.name, [])
        layouts = Counter((tuple(x.shape), x.stride(), x.dtype) for x in blanks)
        dense, rungs = 0.0, [0.0] * len(_rungs(draft))
        for (shape, stride, dtype), count in layouts.items():
            blank = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
            scale = clock.scale(dense_layers[draft.name], draft, blank)
            dense += count * scale.dense
            rungs = [a + count * b for a, b in zip(rungs, scale.rungs, strict=True)]
        found.append(Scale(dense, tuple(rungs)))
    return found


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
