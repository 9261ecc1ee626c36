"""Calibration by running anew: for each layer all batches run up to it, one at a time, so that one
batch's activations are alive; L layers cost about L / 2 passes."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass

from torch import Tensor, nn

from tensorlrf.compression.calibration._beside import Beside
from tensorlrf.compression.calibration._layer_moments import (
    Adder,
    Calibration,
    LayerMoments,
    Layers,
)
from tensorlrf.compression.calibration._reference import ReferencePass, reference_pass
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
    add, sources = Adder(calibration, original is not None), calibration.beside
    for name in in_order(names, trace):
        moments: dict[str, LayerMoments] = {}
        for batch in calibration.batches:
            own = replica(model)
            with (
                contextlib.suppress(Captured),
                reference_pass(
                    original, [name], batch, most_threads(), trace.calls, sources
                ) as reference,
                Beside(own, [name], sources) as beside,
                Watch(
                    own,
                    [name],
                    _Last(add, moments, model, batch, reference, beside, trace.calls.get(name)),
                ),
            ):
                call(own, batch)
        if name in moments:
            yield [(name, moments[name])]


def in_order(names: list[str], trace: Trace) -> list[str]:
    """Those that the first batch called as it did, then the others."""
    called = [name for name in trace.calls if name in names]
    return [*called, *(name for name in names if name not in trace.calls)]


@dataclass
class _Last:
    """Adds what arrives at a layer, and ends the pass with its last call."""

    add: Adder
    moments: dict[str, LayerMoments]
    model: nn.Module
    batch: Batch
    reference: ReferencePass | None
    beside: Beside
    n_calls: int | None
    calls: int = 0

    def __call__(self, name: str, x: Tensor) -> None:
        r, x0 = self.beside.take(name), None
        if self.reference is not None:
            x0 = self.reference.input_of(name)
            x0 = self.beside.with_lag(name, x0, self.reference.beside(name), r)
        self.add(self.moments, name, self.model, self.batch, x, x0)
        self.calls += 1
        if self.calls == self.n_calls:
            raise Captured
