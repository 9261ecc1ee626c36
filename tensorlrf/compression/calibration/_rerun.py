"""Calibration by running anew: for each layer all batches run up to it, one at a time, so that one
batch's activations are alive; L layers cost about L / 2 passes. Layers that are fed the same tensor
cost one between them, and so does the same matrix of all experts of a mixture that there is room
for."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from tensorlrf.compression.calibration._beside import Beside
from tensorlrf.compression.calibration._correction import lag_bytes
from tensorlrf.compression.calibration._dense_layer import dense_layer_at
from tensorlrf.compression.calibration._layer_moments import (
    Adder,
    Calibration,
    LayerMoments,
    Layers,
)
from tensorlrf.compression.calibration._memory import parted
from tensorlrf.compression.calibration._reference import ReferencePass, reference_pass
from tensorlrf.compression.calibration._shared_inputs import PassInputs, SharedInputs, leaders
from tensorlrf.compression.calibration._trace import Trace, Watch
from tensorlrf.compression.calibration.batches import Batch, call
from tensorlrf.compression.calibration.stacks._stacks import stacks
from tensorlrf.decomposition.linalg.threads import most_threads
from tensorlrf.nn.copies import replica
from tensorlrf.nn.packed.unpacked import Unpacked


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
    lags = original is not None
    shared = SharedInputs(leaders(model, names, trace.after, lags=lags))
    order = in_order(names, trace)
    for together in _together(model, order, trace, calibration, shared, lags=lags):
        name = together[0]
        followers = [other for other in order if shared.leaders.get(other) == name]
        shared.passes.clear()
        gathered = _gathered(model, together, followers, trace, calibration, original, shared)
        leading = None
        for name in together:
            layer, metrics = dense_layer_at(model, name), calibration.metrics_of(name)
            mine = calibration.summed(name, layer, gathered.pop(name, None), lags=lags)
            if mine is not None:
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


def _together(
    model: nn.Module,
    order: list[str],
    trace: Trace,
    calibration: Calibration,
    shared: SharedInputs,
    *,
    lags: bool,
) -> Iterator[list[str]]:
    """Layers that the same passes gather: one that may lead others, or as many experts of a stack
    as there is room for. Names alone do not tell that experts do not feed one another: a mixture
    that was taken apart does."""
    mixed = {name: dense_layer_at(model, name) for name in order if _in_mixture(model, name)}
    stacked = {name: own for own in stacks(model, mixed) for name in own}
    done: set[str] = set()

    def alone(name: str) -> bool:
        leads = shared.leads(name) or name in shared.leaders
        return not leads and trace.calls.get(name, 1) == 1

    for name in order:
        if name in done or name in shared.leaders:
            continue
        own = [one for one in stacked.get(name, ()) if alone(one)] if alone(name) else []
        own = own or [name]
        done.update(own)
        sizes = {one: _bytes(model, one, calibration, lags=lags) for one in own}
        yield from parted(sizes, calibration.room)


def _in_mixture(model: nn.Module, name: str) -> bool:
    """Whether a layer is in a list of a mixture that keeps its experts packed elsewhere."""
    holder = model.get_submodule(".".join(name.split(".")[:-2]))
    return isinstance(holder, Unpacked) and hasattr(holder, "num_experts")


def _bytes(model: nn.Module, name: str, calibration: Calibration, *, lags: bool) -> int:
    """Of what is gathered of a layer."""
    layer = dense_layer_at(model, name)
    copies = (2 if calibration.held else 1) * layer.groups
    own = lag_bytes((layer.shape[0] // layer.groups, *layer.shape[1:]), layer.taps)
    return calibration.bytes_at(model, name) + (copies * own if lags else 0)


def _gathered(
    model: nn.Module,
    together: list[str],
    followers: list[str],
    trace: Trace,
    calibration: Calibration,
    original: nn.Module | None,
    shared: SharedInputs,
) -> dict[str, LayerMoments]:
    """Of these layers, as far as batches of this rank reach them. `followers` follow the first,
    which is then the only one."""
    add, sources = Adder(calibration, original is not None), calibration.beside
    names = [*together, *followers]
    # Of several each batch may reach others, in an order of its own.
    last = names[-1] if len(together) == 1 else ""
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
                    add, moments, model, batch, reference, beside, shared.of_pass(), last,
                    trace.calls.get(last),
                ),
            ),
        ):  # fmt: skip
            call(own, batch)
    return moments


def in_order(names: list[str], trace: Trace) -> list[str]:
    """Those that the first batch called as it did, then the others."""
    called = [name for name in trace.calls if name in names]
    return [*called, *(name for name in names if name not in trace.calls)]


@dataclass
class _Last:
    """Adds what arrives at layers, and ends the pass with the last call of the `last` of those
    that follow a single one."""

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
