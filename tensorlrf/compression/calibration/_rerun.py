"""Calibration by running anew: for each layer all batches run up to it, one at a time, so that one
batch's activations are alive; L layers cost about L / 2 passes. Layers that are fed the same tensor
cost one between them."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass

from torch import Tensor, nn

from tensorlrf.compression.calibration._beside import Beside
from tensorlrf.compression.calibration._dense_layer import dense_layer_at
from tensorlrf.compression.calibration._layer_moments import (
    Adder,
    Calibration,
    LayerMoments,
    Layers,
)
from tensorlrf.compression.calibration._reference import ReferencePass, reference_pass
from tensorlrf.compression.calibration._shared_inputs import PassInputs, SharedInputs, leaders
from tensorlrf.compression.calibration._trace import Trace, Watch
from tensorlrf.compression.calibration.batches import Batch, call
from tensorlrf.decomposition.linalg.threads import most_threads
from tensorlrf.nn.copies import replica


class Captured(BaseException):
    """The last input that was wanted has come; the rest of the pass is of no use."""


def anew(
    model: nn.Module,
    names: list[str],
    trace: Trace,
    calibration: Calibration,
    original: nn.Module | None,
) -> Generator[Layers, None, None]:
    """As `calibrated`, a layer at a time."""
    shared = SharedInputs(leaders(model, names, trace.after, lags=original is not None))
    order = in_order(names, trace)
    for name in order:
        if name in shared.leaders:
            continue
        followers = [other for other in order if shared.leaders.get(other) == name]
        shared.passes.clear()
        mine = _gathered(model, [name, *followers], trace, calibration, original, shared)
        leading = None
        if mine is not None:
            layer, metrics = dense_layer_at(model, name), calibration.metrics_of(name)
            leading = mine.following(layer, metrics) if followers else None
            yield [(name, mine)]
        del mine
        for other in followers:
            fed_alike = calibration.group.every(shared.holds(other))
            if leading is None or not fed_alike:  # here and there it was fed another one
                yield from anew(model, [other], trace, calibration, original)
                continue
            layer, metrics = dense_layer_at(model, other), calibration.metrics_of(other)
            yield [(other, leading.following(layer, metrics))]


def _gathered(
    model: nn.Module,
    names: list[str],
    trace: Trace,
    calibration: Calibration,
    original: nn.Module | None,
    shared: SharedInputs,
) -> LayerMoments | None:
    """Of the first of these layers, which the others follow; None where no batch reaches it."""
    add, sources = Adder(calibration, original is not None), calibration.beside
    moments: dict[str, LayerMoments] = {}
    for batch in calibration.batches:
        own = replica(model)
        with (
            contextlib.suppress(Captured),
            reference_pass(
                original, names, batch, most_threads(), trace.calls, sources
            ) as reference,
            Beside(own, names, sources) as beside,
            Watch(
                own,
                names,
                _Last(
                    add, moments, model, batch, reference, beside, shared.of_pass(), names[-1],
                    trace.calls.get(names[-1]),
                ),
            ),
        ):  # fmt: skip
            call(own, batch)
    first, lags = dense_layer_at(model, names[0]), original is not None
    return calibration.summed(names[0], first, moments.get(names[0]), lags=lags)


def in_order(names: list[str], trace: Trace) -> list[str]:
    """Those that the first batch called as it did, then the others."""
    called = [name for name in trace.calls if name in names]
    return [*called, *(name for name in names if name not in trace.calls)]


@dataclass
class _Last:
    """Adds what arrives at a layer, and ends the pass with the last call of the `last` of those
    that follow it."""

    add: Adder
    moments: dict[str, LayerMoments]
    model: nn.Module
    batch: Batch
    reference: ReferencePass | None
    beside: Beside
    inputs: PassInputs
    last: str
    n_calls: int | None
    calls: int = 0

    def __call__(self, name: str, x: Tensor) -> None:
        r, x0 = self.beside.take(name), None
        if self.reference is not None:
            x0 = self.reference.input_of(name)
            x0 = self.beside.with_lag(name, x0, self.reference.beside(name), r)
        if not self.inputs.follows(name, x, x0):
            self.add(self.moments, name, self.model, self.batch, x, x0)
        self.calls += name == self.last
        if self.calls == self.n_calls:
            raise Captured
