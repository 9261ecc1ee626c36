"""Sequential calibration: each layer's moments on what the already compressed layers deliver.

The model at hand is a working copy. `calibrated` yields one layer after another with the moments
of its inputs; whoever takes them writes the compressed weight into the copy before asking for the
next one. Each pass runs through a replica: a model may keep what it has computed on itself.

Two ways give the same moments: passes that wait at each layer (`_suspended`), and passes that run
anew up to it (`_rerun`).

A third way looks at all layers at once, on the inputs that the given model delivers: `at_once`.

Layers that are fed the very same tensor share what is known of it (`_shared_inputs`).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator
from dataclasses import dataclass

from torch import Tensor, nn

from tensorlrf.compression.calibration._dense_layer import dense_layer_at
from tensorlrf.compression.calibration._layer_moments import (
    Adder,
    Calibration,
    LayerMoments,
    Layers,
)
from tensorlrf.compression.calibration._memory import parted
from tensorlrf.compression.calibration._rerun import Captured, anew, in_order
from tensorlrf.compression.calibration._shared_inputs import PassInputs, SharedInputs, leaders
from tensorlrf.compression.calibration._suspended import suspended
from tensorlrf.compression.calibration._trace import Arrived, Trace, Watch
from tensorlrf.compression.calibration.batches import Batch, call
from tensorlrf.nn.copies import replica


def calibrated(
    model: nn.Module,
    names: list[str],
    trace: Trace,
    calibration: Calibration,
    *,
    rerun: bool,
    original: nn.Module | None = None,
) -> Generator[Layers, None, None]:
    """Layers with what was seen of their inputs over all batches, in order of execution.

    Layers that no batch reaches are not yielded. A layer that is called several times in a pass
    is yielded at its last call, with the inputs of all calls. With `original`, the given model runs
    every pass in step, so that the lag behind it is seen too; its activations come on top.
    """
    return (anew if rerun else suspended)(model, names, trace, calibration, original)


def at_once(
    model: nn.Module, names: list[str], trace: Trace, calibration: Calibration
) -> Generator[Layers, None, None]:
    """As `calibrated`, but on the inputs that the model as it is delivers: one pass a batch for as
    many layers as have room for their moments."""
    add = Adder(calibration, False)
    sizes = {name: calibration.bytes_at(model, name) for name in in_order(names, trace)}
    for part in parted(sizes, calibration.room):
        moments: dict[str, LayerMoments] = {}
        shared = SharedInputs(leaders(model, part, trace.after, lags=False))
        for batch in calibration.batches:
            arrived = Arrivals(add, moments, shared.of_pass(), model, batch)
            run_to(model, part, trace, batch, arrived)
        for name in part:
            layer = dense_layer_at(model, name)
            if name not in shared.leaders:
                found = calibration.summed(name, layer, moments.pop(name, None), lags=False)
                moments.update({} if found is None else {name: found})
        for name, first in shared.leaders.items():
            if not calibration.group.every(shared.holds(name)):
                moments.update(itertools.chain(*anew(model, [name], trace, calibration, None)))
            elif first in moments:
                layer, metrics = dense_layer_at(model, name), calibration.metrics_of(name)
                moments[name] = moments[first].following(layer, metrics)
        yield [(name, moments[name]) for name in part if name in moments]


@dataclass
class Arrivals:
    """Adds what arrives in one pass."""

    add: Adder
    moments: dict[str, LayerMoments]
    inputs: PassInputs
    model: nn.Module
    batch: Batch

    def __call__(self, name: str, x: Tensor) -> None:
        if not self.inputs.follows(name, x):
            self.add(self.moments, name, self.model, self.batch, x)


def run_to(
    model: nn.Module, names: list[str], trace: Trace, batch: Batch, arrived: Arrived
) -> None:
    """A pass of a replica, which tells of every call of these layers, until the last of them has
    been called as often as in the first pass."""
    own, last = replica(model), names[-1]
    with contextlib.suppress(Captured), Watch(own, names, _Until(arrived, last, trace)):
        call(own, batch)


@dataclass
class _Until:
    """Tells of calls, and ends a pass with the last call of a layer."""

    arrived: Arrived
    last: str
    trace: Trace
    calls: int = 0

    def __call__(self, name: str, x: Tensor) -> None:
        self.arrived(name, x)
        if name == self.last:
            self.calls += 1
            if self.calls == self.trace.calls.get(name):
                raise Captured
