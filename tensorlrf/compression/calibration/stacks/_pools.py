"""Moments of the inputs of all experts of a stack together, on what the given model delivers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from tensorlrf.compression.calibration._calibrate import run_to
from tensorlrf.compression.calibration._dense_layer import DenseLayer, dense_layer_at
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration._memory import parted
from tensorlrf.compression.calibration._rerun import in_order
from tensorlrf.compression.calibration._trace import Trace
from tensorlrf.compression.calibration.batches import Batch
from tensorlrf.compression.calibration.moments._inputs import Inputs, Pool
from tensorlrf.compression.calibration.moments._moments import Moments, moments_of
from tensorlrf.compression.calibration.moments._over_ranks import add_up
from tensorlrf.compression.calibration.moments._sums import raised
from tensorlrf.compression.calibration.stacks._spread import DIRECTIONS, Spread
from tensorlrf.compression.calibration.stacks._stacks import by_mixture, stacks, told
from tensorlrf.compression.group._group import Alone
from tensorlrf.compression.report._rows import ExpertPool


class Pools:
    """Of the stacks among some layers, gathered where one is first asked for, with those of the
    same mixture, and as many others that follow as there is room for: those before are given up."""

    def __init__(
        self, model: nn.Module, names: Sequence[str], trace: Trace, data: Calibration
    ) -> None:
        self._model, self._trace, self._data = model, trace, data
        layers = {name: dense_layer_at(model, name) for name in names}
        found = [own for own in stacks(model, layers) if self._of_one_form(own)]
        place = {name: k for k, name in enumerate(in_order(list(names), trace))}
        found.sort(key=lambda own: min(place[name] for name in own))
        mixtures = {own[0][0]: own for own in by_mixture(model, found)}
        sizes = {
            key: sum(self._bytes(layers[one[0]], one) for one in own)
            for key, own in mixtures.items()
        }
        parts = parted(sizes, data.room)
        self._parts = [[own for key in part for own in mixtures[key]] for part in parts]
        self._part = {name: k for k, part in enumerate(self._parts) for own in part for name in own}
        self._at: int | None = None
        self._found: dict[str, Pool] = {}
        self._told: dict[str, ExpertPool] = {}

    def _of_one_form(self, names: Sequence[str]) -> bool:
        """Whether the moments of all of them are kept alike."""
        return len({self._data.form_of(name) for name in names}) == 1

    def _bytes(self, layer: DenseLayer, names: Sequence[str]) -> int:
        """Of what is summed up of a stack."""
        form = self._data.form_of(names[0])
        return 8 * (form.numbers(layer.columns) + len(names) * DIRECTIONS * layer.columns)

    def of(self, name: str) -> Pool | None:
        """What is known of the stack of a layer; None where it is of none, or its experts have too
        little in common."""
        part = self._part.get(name)
        if part is not None and part != self._at:
            self._found.clear()
            self._at = part
            self._gather(self._parts[part])
        return self._found.get(name)

    @property
    def told(self) -> tuple[ExpertPool, ...]:
        """Of all stacks that were asked for."""
        return tuple(self._told.values())

    def _gather(self, part: Sequence[list[str]]) -> None:
        """By passes of the given model over the batches to fit to, and one more over the first,
        which tells how large columns are."""
        sums: dict[str, _Sums] = {}
        for names in part:
            one = _Sums(names, dense_layer_at(self._model, names[0]), self._data)
            sums.update(dict.fromkeys(names, one))
        names = in_order(list(sums), self._trace)
        fitted, group = self._data.fitted, self._data.group
        first = group.least(min((batch.index for batch in fitted), default=float("inf")))
        for batch in (one for one in fitted if one.index == first):
            run_to(self._model, names, self._trace, batch, partial(_look, sums, batch))
        group.total([sums[own[0]].squares for own in part])
        for batch in fitted:
            run_to(self._model, names, self._trace, batch, partial(_add, sums, batch))
        for own in part:
            sums[own[0]].over(group, own)
            pool = sums[own[0]].pool()
            if pool is not None:
                self._found.update(dict.fromkeys(own, pool))
                rows = tuple(map(sums[own[0]].spread.count_of, own))
                self._told[own[0]] = ExpertPool(told(own), rows, pool.credit)


def _look(sums: Mapping[str, _Sums], batch: Batch, name: str, x: Tensor) -> None:
    sums[name].look(batch.tokens_of(x))


def _add(sums: Mapping[str, _Sums], batch: Batch, name: str, x: Tensor) -> None:
    sums[name].add(name, batch.tokens_of(x))


class _Sums:
    """Of one stack: moments of all rows, and how experts differ."""

    def __init__(self, names: Sequence[str], layer: DenseLayer, data: Calibration) -> None:
        self._moments: Moments = moments_of(layer, data.form_of(names[0]))
        self.squares = torch.zeros(layer.columns, dtype=torch.float64, device=layer.device)

    def look(self, x: Tensor) -> None:
        """The input of one call: how large its columns are."""
        self.squares += _rows(x).square().sum(0)

    @cached_property
    def spread(self) -> Spread:
        """In columns of unit variance, by those that were looked at; none is made ten times as
        large as it is beside the others."""
        least = self.squares.mean() / 100
        return Spread(self.squares.clamp(min=least).rsqrt() if least > 0 else self.squares)

    def add(self, name: str, x: Tensor) -> None:
        """The input of one call."""
        self._moments.add(x)
        self.spread.add(name, _rows(x))

    def over(self, group: Alone, names: Sequence[str]) -> None:
        """Take what this one of every rank has seen of these experts."""
        if group.size > 1:
            add_up(self._moments, group)
            self.spread.over(group, names)

    def pool(self) -> Pool | None:
        """None where it does not serve, or has rows that are not finite: whose these are is told
        where that one is fitted."""
        inputs, credit = Inputs.of(self._moments), self.spread.credit()
        if not credit > 0 or not torch.isfinite(inputs.gram.diagonal()).all():
            return None
        return Pool(inputs, min(credit, float(inputs.count)))


def _rows(x: Tensor) -> Tensor:
    return raised(x.detach()).reshape(-1, x.shape[-1])
