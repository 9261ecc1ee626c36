"""Passes of the given model that sum up the moments of several layers at once, batch by batch.

Layers that are fed the very same tensor have one sum. Whether they are is told by the first batch
and looked at in every pass; where it turns out to be wrong, sums begin anew, of each by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from tensorlrf.compression._survey import survey as survey_of
from tensorlrf.compression._survey import without_skipped
from tensorlrf.compression.calibration._calibrate import Arrivals, run_to
from tensorlrf.compression.calibration._dense_layer import dense_layer_at
from tensorlrf.compression.calibration._layer_moments import Adder, Calibration, LayerMoments
from tensorlrf.compression.calibration._memory import Gathered, forms_of
from tensorlrf.compression.calibration._rerun import in_order
from tensorlrf.compression.calibration._shared_inputs import SharedInputs, leaders
from tensorlrf.compression.calibration._trace import Trace, record
from tensorlrf.compression.calibration.moments._form import IMAGE, Form
from tensorlrf.compression.calibration.moments._moments import ShiftMoments
from tensorlrf.compression.moments._kept import Groups, moved
from tensorlrf.compression.moments._layer import CalibratedLayer, unseen
from tensorlrf.compression.moments._moments import Moments
from tensorlrf.errors import ArgumentError, CalibrationWarning, warn

Sums = dict[str, LayerMoments]
"""By layer."""


@dataclass(frozen=True)
class Watched:
    """A model and the layers whose inputs are summed up.

    names  in the order of the model
    trace  of the first batch
    like   layer -> the one that is fed the very same, as far as that batch tells
    """

    model: nn.Module
    names: list[str]
    trace: Trace
    data: Calibration
    like: Mapping[str, str]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        data: Calibration,
        skip: str | Sequence[str] | None,
        include: Sequence[str],
        limit: int | None,
    ) -> Watched:
        """Raises ArgumentError where no layer is eligible, or the limit is below the least."""
        wanted = without_skipped(survey_of(model), model, skip, include)
        names = [one.name for one in wanted if one.eligible]
        trace = record(model, names, data.first) if names else None
        names = [name for name in names if trace is not None and name not in trace.readers]
        if trace is None or not names:
            raise ArgumentError(
                "model has no layer whose moments would serve: none is eligible, or skip= leaves "
                "all out"
            )
        layers = {name: dense_layer_at(model, name) for name in names}
        gathered = Gathered(lags=False, held=False, plain=True)
        needs = gathered.within(layers, limit, group=data.group)
        for message in gathered.told(layers, needs, limit):
            warn(message, CalibrationWarning)
        forms = {name: need.form for name, need in needs.items() if need.form is not None}
        return cls(model, names, trace, data, {}).kept_as(forms)

    def kept_as(self, forms: Mapping[str, Form]) -> Watched:
        """The layers that have a form of moments, in it."""
        names = [name for name in self.names if name in forms]
        like = leaders(self.model, names, self.trace.after, lags=False)
        # An image is one of the layer's own weight.
        shared = {name for name in names if forms[name].kind != IMAGE}
        like = {n: one for n, one in like.items() if n in shared and forms[n] == forms[one]}
        return replace(self, names=names, data=replace(self.data, forms=forms), like=like)

    def may_be_kept_as(self, forms: Mapping[str, Form]) -> bool:
        """Whether each of the layers, and no other, has a form that its moments can have."""
        return set(forms) == set(self.names) and all(
            form in forms_of(dense_layer_at(self.model, name), plain=True)
            for name, form in forms.items()
        )

    def row(self, name: str) -> CalibratedLayer:
        """Of a layer of which nothing has been seen."""
        return unseen(name, dense_layer_at(self.model, name), self.data.form_of(name))

    @property
    def ordered(self) -> list[str]:
        """The layers in the order of their calls."""
        return in_order(self.names, self.trace)

    def followed(self, name: str) -> list[str]:
        """A layer, and those that are fed the same."""
        return [name, *(one for one, first in self.like.items() if first == name)]

    def bytes_of(self, name: str) -> int:
        """Of the sums of a layer."""
        return self.data.bytes_at(self.model, name)

    def without(self, apart: Sequence[str]) -> Watched:
        """The same, where these layers are fed what is their own."""
        return replace(self, like={n: one for n, one in self.like.items() if n not in apart})


class Parted(Exception):
    """Layers that a pass fed something else than the ones they were to follow."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self.names = names


@dataclass
class Part:
    """Some of the layers, on their way through the batches.

    sums  so far, of those that lead others or are by themselves
    done  batches that are in them
    """

    watched: Watched
    names: list[str]
    sums: Sums = field(default_factory=dict)
    done: int = 0

    def run(self, advance: Callable[[str], None], kept: Callable[[], None]) -> None:
        """The batches that are left. `kept` is told of each one that is in the sums.

        Raises Parted, when the sums are of no use any more.
        """
        watched = self.watched
        names = in_order(self.names, watched.trace)
        like = {name: one for name, one in watched.like.items() if name in self.names}
        add = Adder(watched.data, lags=False)
        for batch in watched.data.batches[self.done :]:
            shared = SharedInputs(like)
            arrived = Arrivals(add, self.sums, shared.of_pass(), watched.model, batch)
            run_to(watched.model, names, watched.trace, batch, arrived)
            apart = [name for name in like if not shared.holds(name)]
            if apart:
                raise Parted(apart)
            self.done += 1
            advance(f"batch {self.done}")
            kept()

    @property
    def n_bytes(self) -> int:
        """Of all sums."""
        like = self.watched.like
        return sum(self.watched.bytes_of(name) for name in self.names if name not in like)

    @property
    def settles(self) -> bool:
        """Whether it matters for the rounding of later sums when these are looked at."""
        sums = (one for seen in self.sums.values() for one in seen.sums)
        return any(isinstance(one, ShiftMoments) for one in sums)

    def settled(self, to: Callable[[Tensor], Tensor]) -> dict[str, Groups]:
        """What is in the sums so far, in the memory that `to` gives."""
        watched = self.watched
        return {
            name: tuple(moved(watched.row(name), one, to) for one in seen.sums)
            for name, seen in self.sums.items()
        }

    def restore(self, moments: Moments) -> None:
        """Go on from what an earlier run had of the same layers. Raises what reading them does."""
        watched = self.watched
        for row in moments.layers:
            if not row.count or row.like:
                continue
            layer = dense_layer_at(watched.model, row.name)
            seen = watched.data.moments_of(row.name, layer, lags=False)
            for one, known in zip(seen.sums, moments.kept.own(row), strict=True):
                tensors = {name: t.to(layer.device) for name, t in known.tensors().items()}
                one.restore(known.count, tensors)
            self.sums[row.name] = seen
        self.done = moments.batches

    def rows(self) -> list[CalibratedLayer]:
        """Of each layer, by what is in the sums."""
        found = []
        for name in self.names:
            first = self.watched.like.get(name, name)
            seen = self.sums.get(first)
            row, count = self.watched.row(name), 0 if seen is None else seen.sums[0].count
            found.append(replace(row, count=count, like=first if count and first != name else ""))
        return found
