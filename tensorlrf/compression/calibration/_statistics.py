"""What calibration knows of one group of a layer, and the errors that follow from it.

With D = W - A for an approximation A, a correction b of the bias, and e = W (x0 - x) what the
layers before have lost (zero where the target are the outputs on x itself),

    E||W x0 - A x - b||^2 = tr(D G D^T) + 2 tr(D E[x e^T]) + E||e||^2 - 2 b.(D mu + E[e]) + ||b||^2

with G = E[x x^T] and mu = E[x]. It is least at b = D mu + E[e]; D then minimises the same form in
the centred moments, G - mu mu^T and so on.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from tensorlrf.compression.calibration._correction import (
    InputLags,
    Lag,
    LagMoments,
    lag_moments,
)
from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.calibration.moments._form import FULL, Form
from tensorlrf.compression.calibration.moments._inputs import Inputs, Pool
from tensorlrf.compression.calibration.moments._moments import Moments, moments_of
from tensorlrf.compression.calibration.moments._over_ranks import add_up
from tensorlrf.compression.group._group import Alone
from tensorlrf.decomposition.linalg.compact import Compact, Drawn, Gram, some_rows
from tensorlrf.decomposition.second_moments import OutputMetric
from tensorlrf.decomposition.shrinkage import mean_eigenvalue, shrunk
from tensorlrf.factors import Factors
from tensorlrf.factors.kinds import two_matrices

Metrics = Sequence[OutputMetric | None] | None
"""Of the outputs of each group of a layer."""


@dataclass(frozen=True)
class Statistics:
    """What is known of one group of a layer.

    inputs  their moments
    lag     of the outputs behind those of the given model; None where that is not the target
    metric  of the outputs, where errors of some count more than of others
    """

    inputs: Inputs
    lag: Lag | None
    metric: OutputMetric | None = None

    @property
    def gram(self) -> Gram:
        """G, (n, n), float64."""
        return self.inputs.gram

    @property
    def mean(self) -> Tensor:
        """(n,), float64."""
        return self.inputs.mean

    @property
    def count(self) -> int:
        """Columns that the moments are over."""
        return self.inputs.count

    @property
    def warranted(self) -> float:
        """How far the moments are to be drawn towards their mean eigenvalue, 0 to 1."""
        return self.inputs.warranted

    @property
    def known(self) -> bool:
        """Inputs that are all zero say nothing about the weight."""
        return bool(self.gram.diagonal().any())

    def centred(self) -> Statistics:
        """The same about the mean."""
        lag = None if self.lag is None else self.lag.about(self.mean, self.metric)
        return Statistics(self.inputs.centred(), lag, self.metric)

    def shrunk(self, amount: float) -> Statistics:
        """The same, drawn so far; what earlier layers lose is then that much less known from x."""
        if amount == 0.0:
            return self
        gram, lag = self.gram, self.lag
        if isinstance(gram, Compact):
            drawn: Gram = shrunk(gram, amount)
        else:
            drawn = Drawn(gram, 1 - amount, amount * mean_eigenvalue(gram))
        if lag is not None:
            lag = replace(lag, share=(1 - amount) * lag.share)
        return replace(self, inputs=replace(self.inputs, gram=drawn), lag=lag)

    def turned(self) -> Statistics:
        """The same of outputs whose plain norm is the metric of these."""
        if self.metric is None:
            return self
        lag = None if self.lag is None else self.lag.turned(self.metric)
        return Statistics(self.inputs, lag)

    def shift(self, difference: Tensor) -> Tensor:
        """The best b for D = W - A, (O, n) or as the weight is: (O,), float64."""
        shift = _matrix(difference) @ self.mean
        return shift if self.lag is None else shift + self.lag.mean

    @property
    def matrix(self) -> Gram:
        """What differences are multiplied by: G as it was before it was drawn."""
        return self.gram.gram if isinstance(self.gram, Drawn) else self.gram

    def lost(self, rows: slice, difference: Tensor, product: Tensor) -> float:
        """What some rows of D = W - A, float64, and of its product with `matrix` add to
        E||W x0 - A x||^2, but for E||e||^2, which does not depend on A."""
        if isinstance(self.gram, Drawn):
            product = self.gram.of_product(product.clone(), difference)
        if self.lag is not None:
            product = product.add(self.lag.cross[rows], alpha=2 * self.lag.share)
        return float((product * difference).sum())

    @property
    def lost_before(self) -> float:
        """E||e||^2."""
        return 0.0 if self.lag is None else self.lag.lost


def _matrix(weight: Tensor) -> Tensor:
    return weight.reshape(weight.shape[0], -1).to(torch.float64)


def _rows(weight: Tensor) -> Iterator[slice]:
    """Some rows of a weight (O, ...) at a time."""
    yield from some_rows(weight.shape[0], math.prod(weight.shape[1:]))


def _blocks(weight: Tensor) -> Iterator[Tensor]:
    """The same rows as matrices (rows, n) in float64."""
    whole = weight.reshape(weight.shape[0], -1)
    yield from (whole[rows].to(torch.float64) for rows in _rows(weight))


def rooted(*seen: Sequence[Statistics] | None) -> list[Sequence[Statistics] | None]:
    """The same, in which metrics keep their roots: one for all that have it in common."""
    roots: dict[int, OutputMetric] = {}
    found: list[Sequence[Statistics] | None] = []
    for statistics in seen:
        for s in statistics or ():
            if s.metric is not None and id(s.metric) not in roots:
                roots[id(s.metric)] = s.metric.rooted()
        found.append(
            None
            if statistics is None
            else [s if s.metric is None else replace(s, metric=roots[id(s.metric)])
                  for s in statistics]
        )  # fmt: skip
    return found


class OutputError:
    """Relative error of the outputs of all groups of a layer together, root mean square, without
    bias: of one approximation after another, while what they are relative to is known.

    weighted  in the metrics of the outputs, where there are some
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        statistics: Sequence[Statistics],
        *,
        weighted: bool = False,
    ) -> None:
        self.metrics = [s.metric if weighted else None for s in statistics]
        self.weights = [
            w if r is None else r.turned(w) for w, r in zip(weights, self.metrics, strict=True)
        ]
        self.statistics = [s.turned() for s in statistics] if weighted else statistics

    def drawn(self) -> OutputError:
        """The same for inputs as drawn as so many samples warrant."""
        drawn = [s.shrunk(s.warranted) for s in self.statistics]
        twin = copy.copy(self)
        twin.statistics = drawn
        vars(twin).pop("whole", None)
        pairs = zip(self.statistics, drawn, strict=True)
        if all(given.matrix is after.matrix for given, after in pairs):
            vars(twin)["products"] = self.products
        else:  # of a sketch, which is drawn as such
            vars(twin).pop("products", None)
        return twin

    @cached_property
    def products(self) -> list[Tensor]:
        """The product of each group's weight with the matrix of its inputs, (O, n)."""
        groups = zip(self.weights, self.statistics, strict=True)
        return [torch.cat([w @ s.matrix for w in _blocks(weight)]) for weight, s in groups]

    @cached_property
    def whole(self) -> float:
        """E||W x0||^2 over all groups."""
        total = 0.0
        for weight, product, s in zip(self.weights, self.products, self.statistics, strict=True):
            blocks = zip(_rows(weight), _blocks(weight), strict=True)
            parts = (s.lost(rows, w, product[rows]) for rows, w in blocks)
            total += max(0.0, sum(parts) + s.lost_before)
        return total

    def of(
        self,
        approximations: Sequence[Factors | Tensor],
        shifts: Sequence[Tensor | None] | None = None,
    ) -> float:
        """Of an approximation of each group's weight, with a shift of its bias or None."""
        shifts = [None] * len(self.weights) if shifts is None else shifts
        lost = 0.0
        for k, (approximation, shift) in enumerate(zip(approximations, shifts, strict=True)):
            known, metric = self.statistics[k], self.metrics[k]
            lost += _lost(self.weights[k], self.products[k], approximation, known, shift, metric)
        return math.sqrt(lost / self.whole) if self.whole > 0 else 0.0


def _lost(
    weight: Tensor,
    product: Tensor,
    approximation: Factors | Tensor,
    known: Statistics,
    shift: Tensor | None,
    metric: OutputMetric | None,
) -> float:
    """E||W x0 - A x - b||^2 from the product of W with the matrix of the inputs, of what `metric`
    makes of A and b: nothing of it is squared before it cancels. Some rows at a time."""
    lost, means = 0.0, []
    near = _multiplied(approximation, weight, known, metric)
    for rows, own, (dense, moved) in zip(_rows(weight), _blocks(weight), near, strict=True):
        difference = own - dense
        lost += known.lost(rows, difference, product[rows] - moved)
        means.append(difference @ known.mean)
    lost = max(0.0, lost + known.lost_before)
    if shift is None:
        return lost
    best = torch.cat(means)
    best = best if known.lag is None else best + known.lag.mean
    shift = shift if metric is None else metric.turned(shift)
    return max(0.0, lost + float((shift * (shift - 2 * best)).sum()))


def _multiplied(
    approximation: Factors | Tensor,
    weight: Tensor,
    known: Statistics,
    metric: OutputMetric | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Some rows of A, as `metric` turns them, and of its product with the matrix of the inputs."""
    two = two_matrices(approximation)
    if two is not None:  # r rows, no more, are multiplied by G
        left, right = (t.to(torch.float64) for t in two)
        left = left if metric is None else metric.turned(left)
        seen = right @ known.matrix
        for rows in _rows(weight):
            yield left[rows] @ right, left[rows] @ seen
        return
    whole = approximation if isinstance(approximation, Tensor) else approximation.to_dense()
    whole = whole.to(weight.dtype)
    whole = whole if metric is None else metric.turned(_matrix(whole))
    for dense in _blocks(whole):
        yield dense, dense @ known.matrix


class Stream:
    """Collects the `Statistics` of every group of a layer, call by call."""

    def __init__(
        self,
        layer: DenseLayer,
        *,
        lags: bool,
        metrics: Metrics = None,
        form: Form = FULL,
        wanted: Tensor | None = None,
        moments: Sequence[Moments] | None = None,
    ) -> None:
        self._layer, self._metrics, self._wanted = layer, metrics, wanted
        self._own = moments is None  # what a caller has stays as it is
        if moments is None:
            moments = [moments_of(layer, form) for _ in range(layer.groups)]
        self._moments = list(moments)
        self._inputs: list[Inputs] = []
        self._lags: list[LagMoments] | None = None
        if lags and not layer.is_table:  # indices are what they are
            groups = zip(layer.group_weights(), self._of_groups, strict=True)
            self._lags = [lag_moments(w, layer.taps, metric, wanted) for w, metric in groups]

    @property
    def moments(self) -> Sequence[Moments]:
        """Of each group, as long as something may be added."""
        return self._moments

    @property
    def count(self) -> int:
        """Columns of each group so far."""
        return (self._moments or self._inputs)[0].count

    @property
    def has_lags(self) -> bool:
        """Whether it knows what the given model gets where the layer is called."""
        return self._lags is not None

    def drop_lags(self) -> None:
        """Forget them."""
        self._lags = None

    @property
    def _of_groups(self) -> Sequence[OutputMetric | None]:
        """The metric of each group's outputs."""
        return self._metrics or (None,) * self._layer.groups

    def following(self, layer: DenseLayer, metrics: Metrics = None) -> Stream:
        """Of another layer that is fed the very same, with the same moments: nothing is added to
        either any more."""
        self._end()
        twin = copy.copy(self)
        twin._layer, twin._metrics = layer, metrics
        if self._lags is not None:
            groups = zip(self._lags, layer.group_weights(), twin._of_groups, strict=True)
            twin._lags = [lag.of(w, r) for lag, w, r in groups if isinstance(lag, InputLags)]
        return twin

    def add(self, x: Tensor, x0: Tensor | None = None) -> None:
        """Take the input of one call, and for lags the one that the given model gets there.

        There are no lags where that one is missing or has other rows: of an expert, to which the
        given model's router sends other tokens.
        """
        parts = self._split(x)
        for moments, part in zip(self._moments, parts, strict=True):
            moments.add(part)
        if x0 is None or not self._pairs(x, x0):
            self.drop_lags()
        elif self._lags is not None:
            for lag, part, part0 in zip(self._lags, parts, self._split(x0), strict=True):
                lag.add(part, part0)

    def _pairs(self, x: Tensor, x0: Tensor) -> bool:
        """Whether they are inputs of the same calls."""
        if self._wanted is None:
            return x.shape == x0.shape
        shape, dim = list(x.shape), self._layer.channel_dim
        shape[dim] = self._wanted.shape[1]
        return shape == list(x0.shape)

    def merge(self, other: Stream) -> None:
        """Take what another one of the same layer has seen."""
        for moments, more in zip(self._moments, other._moments, strict=True):
            moments.merge(more)
        if other._lags is None:
            self.drop_lags()
        elif self._lags is not None:
            for lag, behind in zip(self._lags, other._lags, strict=True):
                lag.merge(behind)

    def over(self, group: Alone) -> int:
        """Take what this one of every rank has seen; how many columns of each group that is."""
        dropped, count = group.totals([float(not self.has_lags), self.count])
        for moments in self._moments:
            add_up(moments, group)
        if dropped or self._lags is None:
            self.drop_lags()
            return int(count)
        for lag in self._lags:
            group.total(lag.sums())
            lag.count = int(group.totals([lag.count])[0])
        return int(count)

    def statistics(self) -> tuple[Statistics, ...]:
        """One for each group; nothing is added any more."""
        self._end()
        lags: list[Lag | None] = [None] * len(self._inputs)
        if self._lags is not None:
            pairs = zip(self._lags, self._inputs, strict=True)
            lags = [lag.lag().times(inputs.own) for lag, inputs in pairs]
        groups = zip(self._inputs, lags, self._of_groups, strict=True)
        return tuple(Statistics(*group) for group in groups)

    def draw(self, pool: Pool) -> None:
        """Draw what a linear layer was fed, and all that are fed the very same, once, towards what
        other layers of a stack are fed, of which nothing is known to be lost."""
        self._end()
        (own,) = self._inputs
        if not own.credit:
            self._inputs[:] = [pool.drawn(own)]

    def _end(self) -> None:
        """Make moments of the sums, which are given up, for they take as much memory."""
        while self._moments:
            self._inputs.append(Inputs.of(self._moments.pop(0), last=self._own))

    def _split(self, x: Tensor) -> Sequence[Tensor]:
        taps = self._layer.taps
        return (x,) if taps is None else x.chunk(self._layer.groups, dim=-taps.axes - 1)
