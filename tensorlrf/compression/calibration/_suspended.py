"""Calibration by passes that wait: every batch's forward pass stops at a layer and goes on from
there, several side by side with a core each. The whole is one pass a batch, and the activations of
all batches are alive at once.

A layer that is called several times in a pass is held at its last call, when the earlier ones have
been made with the dense weight: behind it the passes begin anew, one more for each such layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from tensorlrf.compression.calibration._beside import Beside
from tensorlrf.compression.calibration._dense_layer import DenseLayer, dense_layer_at
from tensorlrf.compression.calibration._layer_moments import (
    Adder,
    Calibration,
    LayerMoments,
    Layers,
)
from tensorlrf.compression.calibration._reference import ReferencePass, reference_pass
from tensorlrf.compression.calibration._rerun import anew
from tensorlrf.compression.calibration._shared_inputs import PassInputs, SharedInputs, leaders
from tensorlrf.compression.calibration._suspend import Suspendable, trim
from tensorlrf.compression.calibration._trace import Trace, Watch
from tensorlrf.compression.calibration.batches import Batch, call
from tensorlrf.compression.calibration.moments._moments import bytes_of
from tensorlrf.decomposition.linalg.cores import look
from tensorlrf.decomposition.linalg.threads import limited, most_threads
from tensorlrf.nn.copies import replica


def suspended(
    model: nn.Module,
    names: list[str],
    trace: Trace,
    calibration: Calibration,
    original: nn.Module | None,
) -> Generator[Layers, None, None]:
    """As `calibrated`, by one pass a batch, and one more for each layer called several times."""
    # A layer that the first batch did not call comes first: the others wait on the common course.
    others = [name for name in names if name not in trace.calls]
    position = {name: k for k, name in enumerate([*others, *trace.calls])}
    passes = _Passes(model, names, trace, calibration, original)
    moments, shared = passes.moments, passes.shared
    leading: LayerMoments | None = None
    try:
        passes.begin()
        while (name := passes.next_of(position)) is not None:
            trim(now=True)  # a fit has much to allocate
            layer, metrics = dense_layer_at(model, name), calibration.metrics_of(name)
            if name not in shared.leaders:
                mine = passes.summed(name, layer)
                leads = mine is not None and shared.leads(name)
                leading = mine.following(layer, metrics) if mine is not None and leads else None
                yield [] if mine is None else [(name, mine)]
                del mine
            elif leading is not None and calibration.group.every(shared.holds(name)):
                yield [(name, leading.following(layer, metrics))]
            else:  # here and there it was fed something else
                yield from anew(model, [name], trace, calibration, original)
            passes.done.add(name)
            if not shared.waiting(name, passes.done):
                leading = None
            if name in trace.again and not passes.done.issuperset(names):
                passes.begin()
            else:
                passes.go_on_from(name)
        # Called less often than in the first pass, so never at its last call.
        left = {name for part in calibration.group.gathered(list(moments)) for name in part}
        sums = [(n, passes.summed(n, dense_layer_at(model, n))) for n in position if n in left]
        yield [(name, mine) for name, mine in sums if mine is not None]
    finally:
        passes.close()


class _Passes:
    """A pass for each batch, held at its layers.

    moments  of each layer, over all passes
    done     layers that nothing more is added to
    shared   which layers the passes fed the same
    waiting  number of a pass -> the layer that it is held at; None once it has ended
    """

    def __init__(
        self,
        model: nn.Module,
        names: list[str],
        trace: Trace,
        calibration: Calibration,
        original: nn.Module | None,
    ) -> None:
        batches, lags = calibration.batches, original is not None
        self._calibration, self._group, self._lags = calibration, calibration.group, lags
        self.moments: dict[str, LayerMoments] = {}
        self.done: set[str] = set()
        self.shared = SharedInputs(leaders(model, names, trace.after, lags=lags))
        self.waiting: dict[int, str | None] = {}
        self._workers = workers_for(model, names, calibration)
        share = max(1, min(most_threads(), look().free) // self._workers)
        # Each pass adds up for itself, and the sums are added in the order of the batches: the
        # result is the same whichever pass is the first.
        self._sums: list[dict[str, LayerMoments]] = [
            {} if self._workers > 1 else self.moments for _ in batches
        ]
        add = Adder(calibration, lags)
        self._calls = [
            _Pass(model, original, names, trace, batch, share, add, own, self.done, self.shared)
            for batch, own in zip(batches, self._sums, strict=True)
        ]
        self._running: list[Suspendable] = []

    def next_of(self, position: Mapping[str, int]) -> str | None:
        """The first of the layers that passes wait at, those of other ranks among them; None where
        all have ended."""
        reached = [position[name] for name in self.waiting.values() if name is not None]
        first = self._group.least(min(reached, default=len(position)))
        return None if first == len(position) else list(position)[int(first)]

    def summed(self, name: str, layer: DenseLayer) -> LayerMoments | None:
        """What the passes of all ranks have seen of a layer."""
        own = self.moments.pop(name, None)
        return self._calibration.summed(name, layer, own, lags=self._lags)

    def begin(self) -> None:
        """All passes, those that are under way anew, to the first layers that are not done."""
        self.close()
        self.shared.passes.clear()
        for sums in (self.moments, *self._sums):
            sums.clear()
        self._running.extend(map(Suspendable, self._calls))
        self._advance(range(len(self._running)))

    def go_on_from(self, name: str) -> None:
        """The passes that are held at a layer to their next ones."""
        self._advance([k for k, at in self.waiting.items() if at == name])

    def _advance(self, which: Sequence[int]) -> None:
        """As many at once as there are workers."""
        for j in range(len(which) + self._workers):
            if j >= self._workers:
                k = which[j - self._workers]
                self.waiting[k] = self._running[k].back()
                if self._workers > 1:
                    self._gather(self._sums[k])
            if j < len(which):
                self._running[which[j]].go_on()

    def _gather(self, own: dict[str, LayerMoments]) -> None:
        for name, part in own.items():
            if name in self.moments:
                self.moments[name].merge(part)
            else:
                self.moments[name] = part
        own.clear()

    def close(self) -> None:
        """End those that are under way."""
        for one in self._running:
            one.close()
        self._running.clear()


@dataclass(frozen=True)
class _Pass:
    """What one pass runs: the batch through a replica, and with `original` in step with that.

    share    of the threads
    moments  what it adds its inputs to, of layers that are not yet `done`
    """

    model: nn.Module
    original: nn.Module | None
    names: list[str]
    trace: Trace
    batch: Batch
    share: int
    add: Adder
    moments: dict[str, LayerMoments]
    done: set[str]
    shared: SharedInputs

    def __call__(self, this: Suspendable) -> None:
        own, names = replica(self.model), [name for name in self.names if name not in self.done]
        sources = self.add.calibration.beside
        with (
            limited(self.share),
            reference_pass(
                self.original, names, self.batch, self.share, self.trace.calls, sources
            ) as reference,
            Beside(own, names, sources) as beside,
            Watch(own, names, _Arrivals(self, this, own, reference, self.shared.of_pass(), beside)),
        ):
            call(own, self.batch)


@dataclass
class _Arrivals:
    """Adds what arrives in a pass, and holds it at each layer once that has been called as often as
    in the first pass."""

    of: _Pass
    this: Suspendable
    own: nn.Module
    reference: ReferencePass | None
    inputs: PassInputs
    beside: Beside
    calls: Counter[str] = field(default_factory=Counter)

    def __call__(self, name: str, x: Tensor) -> None:
        r, x0 = self.beside.take(name), None
        if self.reference is not None:
            x0 = self.reference.input_of(name)
            x0 = self.beside.with_lag(name, x0, self.reference.beside(name), r)
        del r
        if name in self.of.done:
            return
        if not self.inputs.follows(name, x, x0):
            self.of.add(self.of.moments, name, self.own, self.of.batch, x, x0)
        del x0
        if self.reference is not None:
            self.reference.go_on()
        self.calls[name] += 1
        if self.calls[name] >= self.of.trace.calls.get(name, 1):
            self.this.suspend(name)


def workers_for(model: nn.Module, names: list[str], calibration: Calibration) -> int:
    """How many passes run side by side, with sums of their own within bounds: one for two cores. On
    two, one pass after the other takes no longer (MiniLM: 40 s either way), and 300 MB less."""
    layers = [dense_layer_at(model, name) for name in names]
    if any(layer.device.type != "cpu" for layer in layers):
        return 1
    sizes = [bytes_of(*pair) for pair in zip(layers, map(calibration.form_of, names), strict=True)]
    room = calibration.room // max(1, max(sizes, default=1))
    return max(1, min(len(calibration.batches), most_threads(), look().own // 2, room))
