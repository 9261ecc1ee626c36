"""Aim at the outputs of the given model, from the inputs that the compressed layers deliver.

With x the input that the compressed prefix delivers and x0 the one of the given model, the best
W* for the target y0 = W x0 in the least squares sense is W + E[e x^T] E[x x^T]^-1, where
e = W (x0 - x) is what the layers before have lost by the time it reaches the output. Factors of W*
in the metric of x then give part of it back (Zhang, Zou, He & Sun 2016, "Accelerating very deep
convolutional networks", section 3.3, the asymmetric reconstruction).

With few samples the inverse fits noise; a ridge draws W* towards W.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf.compression.calibration.moments._sums import (
    add_products,
    add_squares,
    mirrored,
    raised,
)
from tensorlrf.compression.calibration.taps._transposed import Reading
from tensorlrf.decomposition.linalg.compact import Compact, Drawn, Gram, cholesky_, solved
from tensorlrf.decomposition.second_moments import OutputMetric

RIDGE = 0.01
"""Of the mean eigenvalue of G: directions with less energy keep their weights."""

ROWS = 1 << 10
"""Inputs of a linear layer whose differences are held at once."""


@dataclass(frozen=True)
class Lag:
    """What the compressed prefix makes the outputs of a layer, or of one of its groups, lose, in
    moments over N positions.

    cross     E[e x^T] (O, n), e = W (x0 - x)
    mean      E[e] (O,)
    lost      E||e||^2
    weighted  E<e, R e>, where there is a metric R of the outputs
    share     of `cross` that counts: less than all of it where x is drawn
    """

    cross: Tensor
    mean: Tensor
    lost: float
    weighted: float = 0.0
    share: float = 1.0

    def about(self, mu: Tensor, metric: OutputMetric | None) -> Lag:
        """The same about the means, E[x] = `mu` and E[e]."""
        felt = 0.0 if metric is None else metric.energy(self.mean)
        return Lag(
            self.share * self.cross - torch.outer(self.mean, mu),
            torch.zeros_like(self.mean),
            max(0.0, self.lost - float(self.mean.square().sum())),
            max(0.0, self.weighted - felt),
        )

    def times(self, share: float) -> Lag:
        """The same where all other positions lose nothing."""
        if share == 1.0:
            return self
        return Lag(
            self.cross, share * self.mean, share * self.lost, share * self.weighted,
            share * self.share,
        )  # fmt: skip

    def turned(self, metric: OutputMetric) -> Lag:
        """Of outputs whose plain norm is the metric of these."""
        cross, mean = metric.turned(self.cross), metric.turned(self.mean)
        return Lag(cross, mean, self.weighted, share=self.share)


class LagMoments(Protocol):
    """Streams the moments of a `Lag`, call by call, for one group of a layer."""

    count: int

    def add(self, x: Tensor, x0: Tensor) -> None:
        """Take the inputs of one call: x of the compressed prefix, x0 of the given model."""

    def merge(self, other: Self) -> None:
        """Take what another one of the same layer has seen."""

    def sums(self) -> list[Tensor]:
        """All that it has added up, the very memory."""

    def lag(self) -> Lag:
        """The moments so far."""


def lag_moments(
    weight: Tensor,
    taps: Reading | None,
    metric: OutputMetric | None = None,
    wanted: Tensor | None = None,
) -> LagMoments:
    """An empty accumulator for a group's weight (O, I, *kernel) or (O, I), the cheaper one. The
    weight is kept, so that the layer's may be overwritten later. With `wanted` (O, n0) a linear or
    pointwise layer is to give wanted x0, of inputs that the given model has another number of."""
    if taps is None and wanted is None and weight.shape[1] <= weight.shape[0]:
        return InputLags(weight, metric)
    return OutputLags(weight, taps, metric, wanted)


def lag_bytes(shape: Sequence[int], taps: Reading | None) -> int:
    """What `lag_moments` of a weight of this shape takes at the most, its moments included."""
    rows, columns = shape[0], math.prod(shape[1:])
    if taps is None and columns <= rows:
        return 8 * (2 * columns**2 + 4 * rows * columns)
    return 8 * 3 * rows * columns


class InputLags:
    """Of a linear layer, from the moments of its inputs: with d = x0 - x, E[e x^T] = W E[d x^T] and
    E||e||^2 = tr(W E[d d^T] W^T). No more than 2 n^2 products a row, whatever the outputs."""

    def __init__(self, weight: Tensor, metric: OutputMetric | None = None) -> None:
        self._weight = weight.detach().to(torch.float64, copy=True)
        self._metric = metric
        n = weight.shape[1]
        self._cross = torch.zeros(n, n, dtype=torch.float64, device=weight.device)
        self._squares = torch.zeros_like(self._cross)
        self._sum = torch.zeros(n, dtype=torch.float64, device=weight.device)
        self.count = 0

    def add(self, x: Tensor, x0: Tensor) -> None:
        """Take the inputs (..., n) of one call."""
        x, x0 = raised(x.detach()), raised(x0.detach())
        x, x0 = x.reshape(-1, x.shape[-1]), x0.reshape(-1, x.shape[-1])
        d = x0 - x
        add_products(self._cross, d, x)
        add_squares(self._squares, d)
        self._sum += d.sum(0).to(torch.float64)
        self.count += x.shape[0]

    def merge(self, other: Self) -> None:
        """Take what another one of the same layer has seen."""
        self._cross += other._cross
        self._squares += other._squares
        self._sum += other._sum
        self.count += other.count

    def sums(self) -> list[Tensor]:
        """All that it has added up, the very memory."""
        return [self._cross, self._squares, self._sum]

    def lag(self) -> Lag:
        """The moments so far."""
        n, weight, squares = max(1, self.count), self._weight, mirrored(self._squares)
        weighted = 0.0
        if self._metric is not None:
            weighted = _energy(self._metric.turned(weight), squares) / n
        lost = _energy(weight, squares) / n
        return Lag(weight @ self._cross / n, weight @ self._sum / n, lost, weighted)

    def of(self, weight: Tensor, metric: OutputMetric | None = None) -> Self:
        """The same sums, to which nothing is added any more, for another weight."""
        twin = copy.copy(self)
        twin._weight = weight.detach().to(torch.float64, copy=True)
        twin._metric = metric
        return twin


def _energy(weight: Tensor, squares: Tensor) -> float:
    """tr(W S W^T)."""
    return max(0.0, float(((weight @ squares) * weight).sum()))


class OutputLags:
    """Of any layer, from the outputs: 2 n O products a row or patch."""

    def __init__(
        self,
        weight: Tensor,
        taps: Reading | None,
        metric: OutputMetric | None = None,
        wanted: Tensor | None = None,
    ) -> None:
        self._weight = raised(weight.detach()).clone()
        self._wanted = None if wanted is None else raised(wanted.detach())
        self._root = None if metric is None else metric.root.to(self._weight.dtype)
        # With other channels in the given model only a pointwise one is: a linear layer on pixels.
        self._pixels = 0 if taps is None or wanted is None else taps.axes
        self._taps = None if taps is None or wanted is not None else taps.one_group()
        like = {"dtype": torch.float64, "device": weight.device}
        self._cross = torch.zeros(weight.shape[0], weight[0].numel(), **like)  # type: ignore[call-overload]
        self._sum = torch.zeros(weight.shape[0], **like)  # type: ignore[call-overload]
        self._lost = torch.zeros((), **like)  # type: ignore[call-overload]
        self._weighted = torch.zeros_like(self._lost)
        self.count = 0

    def add(self, x: Tensor, x0: Tensor) -> None:
        """Take the inputs of one call: x of the compressed prefix, x0 of the given model."""
        x, x0, weight = raised(x.detach()), raised(x0.detach()), self._weight
        taps = self._taps
        if self._pixels:
            x, x0 = (t.movedim(-self._pixels - 1, -1) for t in (x, x0))
        if taps is None:
            x, x0 = x.reshape(-1, x.shape[-1]), x0.reshape(-1, x0.shape[-1])
            parts = range(0, max(1, x.shape[0]), ROWS)
            e = torch.cat([self._behind(x[k : k + ROWS], x0[k : k + ROWS]) for k in parts])
            cross, summed = e.T @ x, e.sum(0).to(torch.float64)
            self.count += x.shape[0]
        else:
            e = taps.outputs(x0 - x, weight)  # (batch, O, *positions)
            # The gradient of a conv in its weight is this very sum over positions.
            cross = taps.gradient(x, e, weight.shape).flatten(1)
            summed = e.flatten(2).sum(2).sum(0, dtype=torch.float64)
            self.count += e.numel() // e.shape[1]
        self._cross += cross
        self._sum += summed
        rows = e.flatten(2) if e.ndim > 2 else e  # of places, or of outputs
        self._lost += _squared(rows)
        if self._root is not None:
            self._weighted += _squared(self._root.T @ rows if e.ndim > 2 else rows @ self._root)

    def _behind(self, x: Tensor, x0: Tensor) -> Tensor:
        """e of a linear layer, (N, O)."""
        if self._wanted is None:
            return F.linear(x0 - x, self._weight)
        return F.linear(x0, self._wanted) - F.linear(x, self._weight.flatten(1))

    def merge(self, other: Self) -> None:
        """Take what another one of the same layer has seen."""
        self._cross += other._cross
        self._sum += other._sum
        self._lost += other._lost
        self._weighted += other._weighted
        self.count += other.count

    def sums(self) -> list[Tensor]:
        """All that it has added up, the very memory."""
        return [self._cross, self._sum, self._lost, self._weighted]

    def lag(self) -> Lag:
        """The moments so far."""
        n = max(1, self.count)
        lost, weighted = float(self._lost) / n, float(self._weighted) / n
        return Lag(self._cross / n, self._sum / n, lost, weighted)


def _squared(rows: Tensor) -> Tensor:
    """The sum of squares, in float64."""
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=-1)
    return lengths.to(torch.float64).square().sum()


def corrected(weight: Tensor, gram: Gram, lag: Lag, ridge: float = RIDGE) -> Tensor:
    """W* = W + E[e x^T] (G + ridge * mean eigenvalue * I)^-1, in the shape of the weight."""
    scale = float(gram.diagonal().mean())
    if not scale > 0:
        return weight
    if isinstance(gram, Compact) and not isinstance(gram, Drawn):
        step = gram.plus(ridge * scale).solve(lag.share * lag.cross)
        return weight + step.reshape(weight.shape).to(weight.dtype)
    factor = None
    while factor is None:
        # The ridge bounds the condition number by n / ridge. Only what cancelling about the mean
        # has left may be so far from positive that more is needed.
        damped = gram.dense() if isinstance(gram, Drawn) else gram.clone()
        damped.diagonal().add_(ridge * scale)
        factor = cholesky_(damped)
        ridge *= 30
    wanted = weight.clone(memory_format=torch.contiguous_format)
    rows = wanted.flatten(1)  # (O, n), a view
    for some, step in solved(factor, lag.cross):
        rows[some] += step.mul_(lag.share).to(weight.dtype)
    return wanted
