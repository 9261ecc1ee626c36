"""What calibration has seen of each layer: the statistics of its inputs, those that it is fitted to
and those that are held out to judge by.

Padding is no input: rows that an attention mask leaves out are left out.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tensorlrf.compression._held_out import groups_of, held_out, whole_groups_held_out
from tensorlrf.compression.calibration._dense_layer import DenseLayer, dense_layer_at
from tensorlrf.compression.calibration._memory import AT_ONCE_BYTES, named_where_memory_ends
from tensorlrf.compression.calibration._outputs import Apart, apart
from tensorlrf.compression.calibration._statistics import Metrics, Statistics, Stream
from tensorlrf.compression.calibration.batches import NOTHING, Batch, list_batches
from tensorlrf.compression.calibration.moments._form import COUNTS, FULL, Form
from tensorlrf.compression.calibration.moments._inputs import Pool
from tensorlrf.compression.calibration.moments._moments import Moments
from tensorlrf.compression.group._group import ALONE, Alone
from tensorlrf.compression.group._scattered import bytes_here
from tensorlrf.errors import ArgumentError
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.nn.copies import replica

MODELS = 2
"""Times what the model takes that moments of layers may take together, where that is more."""

Layers = list[tuple[str, "LayerMoments"]]
"""Layers by name, none of which waits for another, with what was seen of their inputs."""


@dataclass(frozen=True)
class Calibration:
    """The batches, and which of them are held out.

    metrics  layer -> what errors of its outputs cost, where they are not all alike
    room     bytes of moments of several layers at once, which are of one layer at the least
    forms    of the second moments of layers that have no room for all of them
    groups   of each batch the number of what it belongs to, where that is known
    wanted   of linear layers that are to give what others do in the given model, in their place and
             on more inputs, the weights of those
    beside   of these the modules whose inputs are added to their outputs: the columns behind those
             of the inputs are of what the sum is behind
    group    the ranks that have batches of their own each: held, groups and the numbers of batches
             are of those of all, in the order of ranks
    example  the first of all, where that is another rank's
    in_all   how many there are; None for those that are here
    """

    batches: list[Batch]
    held: frozenset[int]
    metrics: Mapping[str, Metrics] = field(default_factory=dict)
    room: int = AT_ONCE_BYTES
    forms: Mapping[str, Form] = field(default_factory=dict)
    groups: tuple[int, ...] | None = None
    wanted: Mapping[str, Tensor] = field(default_factory=dict)
    beside: Mapping[str, str] = field(default_factory=dict)
    group: Alone = ALONE
    example: Batch | None = None
    in_all: int | None = None

    @property
    def first(self) -> Batch:
        """The first batch of all ranks."""
        return self.batches[0] if self.example is None else self.example

    @property
    def n_fitted(self) -> int:
        """How many all ranks together have to fit to."""
        return (len(self.batches) if self.in_all is None else self.in_all) - len(self.held)

    @cached_property
    def most_here(self) -> int:
        """How many batches a rank has at the most."""
        return max(self.group.gathered(len(self.batches)))

    def summed(
        self, name: str, layer: DenseLayer, own: LayerMoments | None, *, lags: bool
    ) -> LayerMoments | None:
        """What all ranks have seen of a layer, by what this one has; None where nobody has any."""
        if self.group.size == 1:
            return own
        found = self.moments_of(name, layer, lags=lags) if own is None else own
        return found if found.over(self.group) else None

    def metrics_of(self, name: str) -> Metrics:
        """Those of a layer; None where all errors count alike."""
        return self.metrics.get(name)

    def bytes_at(self, model: nn.Module, name: str) -> int:
        """Of the second moments of a layer, those of inputs held out among them."""
        layer = dense_layer_at(model, name)
        form = COUNTS if layer.is_table else self.form_of(name)
        return 8 * (2 if self.held else 1) * layer.groups * form.numbers(layer.columns)

    def form_of(self, name: str) -> Form:
        """In which the second moments of a layer are kept."""
        return self.forms.get(name, FULL)

    def moments_of(self, name: str, layer: DenseLayer, *, lags: bool) -> LayerMoments:
        """Of a layer, of which nothing has been seen so far."""
        return LayerMoments(
            layer,
            lags=lags,
            holds_out=bool(self.held),
            metrics=self.metrics_of(name),
            form=self.form_of(name),
            wanted=self.wanted.get(name),
        )

    @classmethod
    def of(cls, batches: list[Batch], holdout: float, groups: Any = None) -> Calibration:
        """Hold out floor(holdout * n) of n batches, evenly spaced: one at the least, where there
        is another to fit to. With labels of groups these stay whole.

        Raises ArgumentError for labels that do not fit.
        """
        if groups is None:
            return cls(batches, frozenset(held_out(len(batches), holdout)))
        found = groups_of(groups, len(batches))
        held = frozenset(whole_groups_held_out(found, holdout))
        return cls(batches, held, groups=tuple(found))

    @classmethod
    def read(
        cls,
        calibration: Any,
        model: nn.Module,
        holdout: float,
        limit: int | None = None,
        groups: Any = None,
        group: Alone = ALONE,
    ) -> Calibration | None:
        """What the user gives, with a limit of memory; None where that is nothing. Raises
        ArgumentError.

        group  ranks each of which is given batches of its own
        """
        check_holdout(holdout)
        if calibration is None:
            if groups is not None:
                raise ArgumentError("groups= are those of batches; give calibration= as well")
            return None
        with torch.inference_mode(False), without_autocast():
            found = cls._over(
                group, list_batches(calibration, replica(model), some=group.size == 1), holdout,
                groups, model,
            )  # fmt: skip
        known = [p for p in model.parameters() if not nn.parameter.is_lazy(p)]
        room = max(AT_ONCE_BYTES, MODELS * sum(map(bytes_here, known)))
        return replace(found, room=room if limit is None else min(limit, room))

    @classmethod
    def _over(
        cls, group: Alone, own: list[Batch], holdout: float, groups: Any, model: nn.Module
    ) -> Calibration:
        """Of ranks with these batches each: numbered through, in the order of ranks."""
        if group.size == 1:
            return cls.of(own, holdout, groups)
        given = None if groups is None else list(groups)
        if given is not None and len(given) != len(own):
            raise ArgumentError(
                f"groups has {len(given)} entries for {len(own)} batches of rank {group.rank}; "
                "give a label for each batch of the rank"
            )
        counts = group.gathered(len(own))
        if not sum(counts):
            raise ArgumentError(f"calibration, on every rank, {NOTHING}")
        before, first = sum(counts[: group.rank]), next(k for k, n in enumerate(counts) if n)
        own = [replace(batch, index=before + k) for k, batch in enumerate(own)]
        example = group.of(first, own[0] if group.rank == first else None)
        if group.rank != first:
            example = _moved(example, model)
        labels = group.gathered(given)
        told = None if groups is None else [one for part in labels for one in part or ()]
        # Whatever stands for the batches of all, of which there are as many.
        found = cls.of([Batch((), {}, k) for k in range(sum(counts))], holdout, told)
        return replace(found, batches=own, group=group, example=example, in_all=sum(counts))

    @property
    def fitted(self) -> list[Batch]:
        """Those to fit to."""
        return [batch for batch in self.batches if batch.index not in self.held]

    @property
    def held_out(self) -> list[Batch]:
        """Those to judge by."""
        return [batch for batch in self.batches if batch.index in self.held]

    @property
    def judging(self) -> list[Batch]:
        """Those held out; where there are none, those to fit to."""
        return self.held_out if self.held else self.fitted

    def apart(self, model: nn.Module, small: nn.Module) -> Apart | None:
        """How far the outputs of two models are apart on those held out."""
        groups = None if self.groups is None else dict(enumerate(self.groups))
        return apart(model, small, self.held_out, groups, self.group)


def _moved(batch: Any, model: nn.Module) -> Any:
    """A batch, which is on the CPU, to where the model is, unless that is on meta."""
    homes = {p.device for p in model.parameters() if not p.is_meta}
    if len(homes) != 1:
        return batch
    (home,) = homes
    args, kwargs = pytree.tree_map(
        lambda leaf: leaf.to(home) if isinstance(leaf, Tensor) else leaf,
        (batch.args, dict(batch.kwargs)),
    )
    return replace(batch, args=args, kwargs=kwargs)


def check_holdout(holdout: Any) -> None:
    """Raise ArgumentError for what is no share of the batches."""
    number = isinstance(holdout, (int, float)) and not isinstance(holdout, bool)
    if not number or not 0 <= holdout < 1:
        raise ArgumentError(
            f"holdout={holdout!r} must be a share of the batches in [0, 1), such as 0.1"
        )


class LayerMoments:
    """What calibration has seen of one layer: of the inputs that it is fitted to, and of those that
    are held out to judge the fit."""

    def __init__(
        self,
        layer: DenseLayer,
        *,
        lags: bool,
        holds_out: bool,
        metrics: Metrics = None,
        form: Form = FULL,
        wanted: Tensor | None = None,
        known: Sequence[Moments] | None = None,
    ) -> None:
        new = partial(Stream, layer, lags=lags, metrics=metrics, form=form, wanted=wanted)
        self._fit, self._held = new(moments=known), new() if holds_out else None

    @property
    def sums(self) -> Sequence[Moments]:
        """Of each group, what has been added up of the inputs to fit to."""
        return self._fit.moments

    def add(self, x: Tensor, x0: Tensor | None, held: bool) -> None:
        """Take the input of one call; x0 is what the given model gets there."""
        stream = self._held if held and self._held is not None else self._fit
        stream.add(x, x0)
        self._agree()

    def following(self, layer: DenseLayer, metrics: Metrics) -> LayerMoments:
        """Of another layer that has been fed the very same."""
        twin = copy.copy(self)
        twin._fit = self._fit.following(layer, metrics)
        twin._held = None if self._held is None else self._held.following(layer, metrics)
        return twin

    def merge(self, other: LayerMoments) -> None:
        """Take what another one has seen of the layer."""
        for stream, more in ((self._fit, other._fit), (self._held, other._held)):
            if stream is not None and more is not None and more.count:
                stream.merge(more)
        self._agree()

    def over(self, group: Alone) -> bool:
        """Take what this one of every rank has seen; whether that is anything."""
        seen = self._fit.over(group)
        seen += 0 if self._held is None else self._held.over(group)
        self._agree()
        return seen > 0

    def _agree(self) -> None:
        """Lags of both or of neither: what is held out judges the target of the fit."""
        if self._held is not None and self._fit.has_lags != self._held.has_lags:
            self._fit.drop_lags()
            self._held.drop_lags()

    def draw(self, pool: Pool) -> None:
        """Draw the inputs to fit to towards what all layers of a stack are fed; nothing is added to
        them any more. Those held out stay as they are: drawn as well, they would prefer what serves
        the others."""
        self._fit.draw(pool)

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
class Adder:
    """Adds the input of a call to what is seen of a layer."""

    calibration: Calibration
    lags: bool

    def __call__(
        self,
        moments: dict[str, LayerMoments],
        name: str,
        model: nn.Module,
        batch: Batch,
        x: Tensor,
        x0: Tensor | None = None,
    ) -> None:
        layer, form = dense_layer_at(model, name), self.calibration.form_of(name)
        with named_where_memory_ends(name, layer, form):
            if name not in moments:
                moments[name] = self.calibration.moments_of(name, layer, lags=self.lags)
            if layer.taps is None:
                x, x0 = batch.tokens_of(x), None if x0 is None else batch.tokens_of(x0)
            moments[name].add(x, x0, batch.index in self.calibration.held)


def check_statistics(name: str, statistics: Sequence[Statistics]) -> None:
    """Raise ArgumentError, naming the layer, where its inputs had NaN or Inf."""
    # A value that is not finite makes the mean square of its column so: n numbers tell it all.
    if not all(torch.isfinite(s.gram.diagonal()).all() for s in statistics):
        raise ArgumentError(
            f"calibration: the inputs of {name} contain NaN or Inf; look at the batches, and at "
            f"the layers before it, or leave it out with skip=[{name!r}]"
        )
