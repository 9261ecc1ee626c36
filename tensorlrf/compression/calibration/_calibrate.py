"""Sequential calibration: each layer's moments on what the already compressed layers deliver.

The model at hand is a working copy. `calibrated` yields one layer after another with the moments
of its inputs; whoever takes them writes the compressed weight into the copy before asking for the
next one. Each pass runs through a replica: a model may keep what it has computed on itself.

Two ways give the same moments. *Suspended*: every batch's forward pass stops at the layer and goes
on from there, several side by side with a core each, so that the whole calibration is one pass a
batch, and the activations of all batches are alive at once. *Rerun*: for each layer all batches run
anew up to it, one at a time; one batch's activations are alive, and L layers cost about L / 2
passes. They differ only behind a layer that is called several times in a pass: a suspended pass has
made its earlier calls with the dense weight.

A third way looks at all layers at once, on the inputs that the given model delivers: `at_once`.

Layers that are fed the very same tensor share what is known of it (`_same`).

Padding is no input: rows that an attention mask leaves out are left out of the moments.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tensorlrf.compression.calibration._memory import named_where_memory_ends
from tensorlrf.compression.calibration._moments import bytes_of
from tensorlrf.compression.calibration._reads import watch_readers
from tensorlrf.compression.calibration._same import Course, Fed, Mark, leaders
from tensorlrf.compression.calibration._site import Site, site_at
from tensorlrf.compression.calibration._statistics import Statistics, Stream
from tensorlrf.compression.calibration._suspend import Suspendable, trim
from tensorlrf.compression.calibration.batches import Batch, call
from tensorlrf.decomposition.linalg.cores import look
from tensorlrf.decomposition.linalg.threads import limited, most_threads
from tensorlrf.errors import ArgumentError
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.nn.copies import replica

Arrived = Callable[[str, Tensor], None]

Layers = list[tuple[str, "Seen"]]
"""Layers by name, none of which waits for another, with what was seen of their inputs."""

AT_ONCE_BYTES = 1 << 29
"""Moments of all layers at once that are alive together (512 MB), of one layer at the least."""


@dataclass(frozen=True)
class Trace:
    """What one forward pass did.

    calls    how often each layer was called, in the order of the last calls; none of `readers`
    inputs   the input shapes of those calls
    readers  layers whose weights somebody else computed with, and who did
    after    layers that are called once, and on the very same tensor as the one before: that one
    """

    calls: dict[str, int]
    inputs: dict[str, list[tuple[int, ...]]]
    readers: dict[str, str]
    after: dict[str, str]


def record(model: nn.Module, names: list[str], batch: Batch) -> Trace:
    """Run the first batch and see in which order the layers are called, and on what."""
    inputs: dict[str, list[tuple[int, ...]]] = {}
    after: dict[str, str] = {}
    last: tuple[str, Mark | None] = ("", None)

    def arrived(name: str, x: Tensor) -> None:
        nonlocal last
        # Taken out and put back in, so that the order is that of the last calls.
        inputs[name] = [*inputs.pop(name, []), tuple(x.shape)]
        mark = Mark.of(x)
        if mark is not None and mark == last[1]:
            after[name] = last[0]
        last = name, mark

    own = replica(model)
    layers = {name: site_at(own, name).module for name in names}
    with watch_readers(own, layers) as readers, _Watch(own, names, arrived):
        call(own, batch)
    found = readers()
    calls = {name: len(shapes) for name, shapes in inputs.items() if name not in found}
    after = {name: one for name, one in after.items() if calls.get(name) == calls.get(one) == 1}
    return Trace(calls, inputs, found, after)


class Seen:
    """What calibration has seen of one layer: of the inputs that it is fitted to, and of those that
    are held out to judge the fit."""

    def __init__(self, site: Site, *, lags: bool, holds_out: bool) -> None:
        self._fit = Stream(site, lags=lags)
        self._held = Stream(site, lags=lags) if holds_out else None

    def add(self, x: Tensor, x0: Tensor | None, held: bool) -> None:
        """Take the input of one call; x0 is what the given model gets there."""
        stream = self._held if held and self._held is not None else self._fit
        stream.add(x, x0)

    def following(self, site: Site) -> Seen:
        """Of another layer that has been fed the very same."""
        twin = copy.copy(self)
        twin._fit = self._fit.following(site)
        twin._held = None if self._held is None else self._held.following(site)
        return twin

    def merge(self, other: Seen) -> None:
        """Take what another one has seen of the layer."""
        for stream, more in ((self._fit, other._fit), (self._held, other._held)):
            if stream is not None and more is not None and more.count:
                stream.merge(more)

    def fit(self) -> tuple[Statistics, ...]:
        """Of the inputs to fit to, one for each group."""
        return self._fit.statistics()

    def held(self) -> tuple[Statistics, ...] | None:
        """Of the inputs held out; None where there are none."""
        if self._held is None or self._held.count == 0:
            return None
        return self._held.statistics()

    def taken(self) -> tuple[tuple[Statistics, ...], tuple[Statistics, ...] | None]:
        """(fit, held); what they were made of is given up, for it takes as much memory."""
        fit = self._fit.statistics()
        del self._fit
        held, self._held = self.held(), None
        return fit, held


@dataclass(frozen=True)
class Calibration:
    """The batches, and which of them are held out."""

    batches: list[Batch]
    held: frozenset[int]

    @classmethod
    def of(cls, batches: list[Batch], holdout: float) -> Calibration:
        """Hold out floor(holdout * n) of n batches, evenly spaced: one at the least, where there
        is another to fit to."""
        n = len(batches)
        count = min(max(int(holdout * n + 1e-9), int(holdout > 0)), n - 1)
        return cls(batches, frozenset(round((k + 1) * n / count) - 1 for k in range(count)))

    @property
    def fitted(self) -> list[Batch]:
        """Those to fit to."""
        return [b for k, b in enumerate(self.batches) if k not in self.held]

    @property
    def held_out(self) -> list[Batch]:
        """Those to judge by."""
        return [b for k, b in enumerate(self.batches) if k in self.held]


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
    return (_rerun if rerun else _suspended)(model, names, trace, calibration, original)


def _suspended(
    model: nn.Module,
    names: list[str],
    trace: Trace,
    calibration: Calibration,
    original: nn.Module | None,
) -> Generator[Layers, None, None]:
    # A layer that the first batch did not call comes first: the others wait on the common course.
    others = [name for name in names if name not in trace.calls]
    position = {name: k for k, name in enumerate([*others, *trace.calls])}
    seen: dict[str, Seen] = {}
    done: set[str] = set()
    lags = original is not None
    add = _Adder(calibration, lags)
    fed = Fed(leaders(model, names, trace.after, lags=lags))
    leading: Seen | None = None
    workers = _workers(model, names, len(calibration.batches))
    share = max(1, min(most_threads(), look().free) // workers)
    # Each pass adds up for itself, and the sums are added in the order of the batches: the result
    # is the same whichever pass is the first.
    own_seen: list[dict[str, Seen]] = [{} if workers > 1 else seen for _ in calibration.batches]

    def forward(k: int, batch: Batch) -> Callable[[Suspendable], None]:
        def run(this: Suspendable) -> None:
            calls: Counter[str] = Counter()
            course = fed.course()

            def arrived(name: str, x: Tensor) -> None:
                x0 = None if ahead is None else ahead.input_of(name)
                if name in done:
                    return
                if not course.follows(name, x, x0):
                    add(own_seen[k], name, own, batch, x, x0)
                del x0
                if ahead is not None:
                    ahead.go_on()
                calls[name] += 1
                if calls[name] >= trace.calls.get(name, 1):
                    this.suspend(name)

            own = replica(model)
            with (
                limited(share),
                _ahead(original, names, batch, share) as ahead,
                _Watch(own, names, arrived),
            ):
                call(own, batch)

        return run

    passes: list[Suspendable] = []
    waiting: dict[int, str | None] = {}

    def advance(which: list[int]) -> None:
        """These passes to their next layers, as many at once as there are workers."""
        for j in range(len(which) + workers):
            if j >= workers:
                k = which[j - workers]
                waiting[k] = passes[k].back()
                for name, part in own_seen[k].items() if workers > 1 else ():
                    if name in seen:
                        seen[name].merge(part)
                    else:
                        seen[name] = part
                if workers > 1:
                    own_seen[k].clear()
            if j < len(which):
                passes[which[j]].go_on()

    try:
        passes.extend(Suspendable(forward(k, batch)) for k, batch in enumerate(calibration.batches))
        advance(list(range(len(passes))))
        while reached := {name for name in waiting.values() if name is not None}:
            name = min(reached, key=position.__getitem__)
            trim(now=True)  # a fit has much to allocate
            site = site_at(model, name)
            if name not in fed.leaders:
                mine = seen.pop(name)
                leading = mine.following(site) if fed.leads(name) else None
                yield [(name, mine)]
                del mine
            elif leading is not None and fed.holds(name):
                yield [(name, leading.following(site))]
            else:  # here and there it was fed something else
                yield from _rerun(model, [name], trace, calibration, original)
            done.add(name)
            if not fed.waiting(name, done):
                leading = None
            advance([k for k, at in waiting.items() if at == name])
        # Called less often than in the first pass, so never at its last call.
        yield list(seen.items())
    finally:
        for one in passes:
            one.close()


def _workers(model: nn.Module, names: list[str], batches: int) -> int:
    """How many passes run side by side, with sums of their own within bounds: one for two cores. On
    two, one pass after the other takes no longer (MiniLM: 40 s either way), and 300 MB less."""
    sites = [site_at(model, name) for name in names]
    if any(site.device.type != "cpu" for site in sites):
        return 1
    room = AT_ONCE_BYTES // max(1, max(map(bytes_of, sites), default=1))
    return max(1, min(batches, most_threads(), look().own // 2, room))


def _rerun(
    model: nn.Module,
    names: list[str],
    trace: Trace,
    calibration: Calibration,
    original: nn.Module | None,
) -> Generator[Layers, None, None]:
    add = _Adder(calibration, original is not None)
    for name in _in_order(names, trace):
        seen: dict[str, Seen] = {}
        for batch in calibration.batches:
            take = partial(add, seen, name, model, batch)
            _run_up_to(model, name, trace.calls.get(name), take, batch, original)
        if name in seen:
            yield [(name, seen[name])]


class _Captured(BaseException):
    """The last input that was wanted has come; the rest of the pass is of no use."""


def _run_up_to(
    model: nn.Module,
    name: str,
    n_calls: int | None,
    take: Callable[[Tensor, Tensor | None], None],
    batch: Batch,
    original: nn.Module | None,
) -> None:
    calls = itertools.count(1)

    def arrived(name: str, x: Tensor) -> None:
        take(x, None if ahead is None else ahead.input_of(name))
        if next(calls) == n_calls:
            raise _Captured

    own = replica(model)
    with (
        contextlib.suppress(_Captured),
        _ahead(original, [name], batch, most_threads()) as ahead,
        _Watch(own, [name], arrived),
    ):
        call(own, batch)


def _in_order(names: list[str], trace: Trace) -> list[str]:
    """Those that the first batch called as it did, then the others."""
    called = [name for name in trace.calls if name in names]
    return [*called, *(name for name in names if name not in trace.calls)]


def at_once(
    model: nn.Module, names: list[str], trace: Trace, calibration: Calibration
) -> Generator[Layers, None, None]:
    """As `calibrated`, but on the inputs that the model as it is delivers: one pass a batch for as
    many layers as have their moments within `AT_ONCE_BYTES`."""
    add = _Adder(calibration, False)
    order = _in_order(names, trace)
    for part in _parts(model, order, 2 if calibration.held else 1):
        seen: dict[str, Seen] = {}
        fed = Fed(leaders(model, part, trace.after, lags=False))
        for batch in calibration.batches:
            last = part[-1]
            arrived = _Arrivals(add, seen, fed.course(), model, batch, last, trace.calls.get(last))
            own = replica(model)
            with contextlib.suppress(_Captured), _Watch(own, part, arrived):
                call(own, batch)
        for name, first in fed.leaders.items():
            if not fed.holds(name):
                seen.update(itertools.chain(*_rerun(model, [name], trace, calibration, None)))
            elif first in seen:
                seen[name] = seen[first].following(site_at(model, name))
        yield [(name, seen[name]) for name in part if name in seen]


def _parts(model: nn.Module, names: list[str], copies: int) -> Iterator[list[str]]:
    part: list[str] = []
    room = AT_ONCE_BYTES
    for name in names:
        site = site_at(model, name)
        size = 8 * copies * site.groups * site.columns**2
        if part and size > room:
            yield part
            part, room = [], AT_ONCE_BYTES
        part.append(name)
        room -= size
    if part:
        yield part


@dataclass
class _Arrivals:
    """Adds what arrives in one pass, and ends it once the last layer has been called as often as
    in the first pass."""

    add: _Adder
    seen: dict[str, Seen]
    course: Course
    model: nn.Module
    batch: Batch
    last: str
    n_calls: int | None
    calls: int = 0

    def __call__(self, name: str, x: Tensor) -> None:
        if not self.course.follows(name, x):
            self.add(self.seen, name, self.model, self.batch, x)
        if name == self.last:
            self.calls += 1
            if self.calls == self.n_calls:
                raise _Captured


@dataclass(frozen=True)
class _Adder:
    """Adds the input of a call to what is seen of a layer."""

    calibration: Calibration
    lags: bool

    def __call__(
        self,
        seen: dict[str, Seen],
        name: str,
        model: nn.Module,
        batch: Batch,
        x: Tensor,
        x0: Tensor | None = None,
    ) -> None:
        site = site_at(model, name)
        with named_where_memory_ends(name, site):
            if name not in seen:
                seen[name] = Seen(site, lags=self.lags, holds_out=bool(self.calibration.held))
            if site.taps is None:
                x, x0 = batch.tokens_of(x), None if x0 is None else batch.tokens_of(x0)
            seen[name].add(x, x0, batch.index in self.calibration.held)


class _Ahead:
    """A pass of the given model that stops at each of the named layers and shows its input."""

    def __init__(self, original: nn.Module, names: list[str], batch: Batch, share: int) -> None:
        self._input: Tensor | None = None
        self._went_on = False
        self._reached: str | None = None

        def run(this: Suspendable) -> None:
            def arrived(name: str, x: Tensor) -> None:
                self._input = x
                this.suspend(name)

            own = replica(original)
            with limited(share), _Watch(own, names, arrived):
                call(own, batch)

        self._pass = Suspendable(run)

    def input_of(self, name: str) -> Tensor:
        """The input of the next call, which must be one of the layer `name`."""
        reached = self._reached if self._went_on else self._pass.advance()
        self._went_on = False
        x, self._input = self._input, None
        if reached != name or x is None:
            raise ArgumentError(
                f"target='original' needs a model that takes the same course before and after "
                f"compression, but where {name} is called now the given model calls "
                f"{reached or 'no further layer'}; use target='prefix'"
            )
        return x

    def go_on(self) -> None:
        """To the next call already, for which `input_of` will ask. Wide inputs, such as those of
        the second layer of a feed-forward block, are then not held by both models at once."""
        self._reached, self._went_on = self._pass.advance(), True

    def close(self) -> None:
        self._pass.close()


@contextlib.contextmanager
def _ahead(
    original: nn.Module | None, names: list[str], batch: Batch, share: int
) -> Iterator[_Ahead | None]:
    if original is None:
        yield None
        return
    with contextlib.closing(_Ahead(original, names, batch, share)) as ahead:
        yield ahead


class _Watch:
    """Calls `arrived(name, input)` before each call of the named layers, while it is entered."""

    def __init__(self, model: nn.Module, names: list[str], arrived: Arrived) -> None:
        self._sites = {name: site_at(model, name) for name in names}
        self._arrived = arrived
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> None:
        for name, site in self._sites.items():
            hook = self._hook(name, site)
            self._handles.append(site.module.register_forward_pre_hook(hook, with_kwargs=True))

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str, site: Site) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            x = args[0] if args else next(iter(kwargs.values()), None)
            # What the layer cannot take is left to the layer, which says so better.
            if isinstance(x, Tensor) and site.fits(x):
                _check_device(name, site, x)
                with without_autocast():  # the model may have one of its own
                    self._arrived(name, x)

        return hook


def _check_device(name: str, site: Site, x: Tensor) -> None:
    if x.device != site.device:
        raise ArgumentError(
            f"calibration: the input of {name} is on {x.device} but its weight is on "
            f"{site.device}; move the batches to the device of the model"
        )


def check_statistics(name: str, statistics: tuple[Statistics, ...]) -> None:
    """Raise ArgumentError, naming the layer, where its inputs had NaN or Inf."""
    # A value that is not finite makes the mean square of its column so: n numbers tell it all.
    if not all(torch.isfinite(s.gram.diagonal()).all() for s in statistics):
        raise ArgumentError(
            f"calibration: the inputs of {name} contain NaN or Inf; look at the batches, and at "
            f"the layers before it, or leave it out with skip=[{name!r}]"
        )
