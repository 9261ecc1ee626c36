"""One layer: its factors, fitted to what calibration has seen, and how far off they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tensorlrf.compression.bases._left import on_right
from tensorlrf.compression.calibration._correction import corrected
from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.calibration._layer_moments import LayerMoments, check_statistics
from tensorlrf.compression.calibration._statistics import OutputError, Statistics, rooted
from tensorlrf.compression.fit._factored import Factored, Options
from tensorlrf.compression.fit._gates import fitted_by_gates
from tensorlrf.compression.methods import Auto, at_rung
from tensorlrf.decomposition.configs import Method
from tensorlrf.decomposition.linalg.compact import Compact, dense
from tensorlrf.decomposition.second_moments import OutputMetric, SecondMoments
from tensorlrf.errors import ArgumentError, ConvergenceWarning, gathering
from tensorlrf.factors import Factors, Grouped

SAMPLES_PER_COLUMN = 4
"""With fewer samples than this times n, the moments fit the samples more than the data."""

INPUT_SHRINKAGE = 0.1
"""Least amount by which moments of inputs are drawn where outputs have a metric as well: what
both sides say little of would otherwise count for next to nothing."""

OVERFITTED = 1.1
"""A held-out error above this many times the one of the fit casts doubt on it."""


def factor(
    name: str, layer: DenseLayer, method: Method, moments: LayerMoments | None, options: Options
) -> Factored:
    """Factors of the layer's weight by a method with a rank, a share or an error.

    Where part of the calibration is held out and the fit is in doubt (few samples, or a higher
    error there), more shrinkage and the plain fit are tried too, and an affine one is kept only
    where it lowers the held-out error. `moments` is of no use afterwards.
    Raises ArgumentError, naming the layer, where its inputs had NaN or Inf.
    """
    fit, held = (None, None) if moments is None else moments.taken()
    return factor_in(name, layer, method, fit, held, options)


def factor_in(
    name: str,
    layer: DenseLayer,
    method: Method,
    fit: Sequence[Statistics] | None,
    held: Sequence[Statistics] | None,
    options: Options,
) -> Factored:
    """The same with the statistics of each group's inputs: of those to fit to, and of those held
    out."""
    for seen in (fit, held):
        if seen is not None:
            check_statistics(name, seen)
    job = _Job(layer, fit, held, options)
    if not isinstance(method, Auto):
        return fitted_by_gates(method, layer.shape, options, job.best)
    share = method.rank
    assert isinstance(share, float) or method.error is not None
    candidates = {c.for_shape(layer.shape) for c in method.candidates}
    tried = []
    for candidate in sorted(candidates, key=lambda c: c.word != "svd"):
        given = candidate
        if layer.why_not(candidate):
            continue
        if candidate.by_share and isinstance(share, float):
            given = candidate.with_budget(rank=share)
        elif isinstance(share, float):
            rung = candidate.ladder(layer.shape, layer.groups).within(share)
            if rung is None:
                continue
            given = at_rung(candidate, rung)
        else:
            given = candidate.with_budget(error=method.error)
        tried.append(fitted_by_gates(given, layer.shape, options, job.best))
    if not tried:
        raise ArgumentError(
            f"method='auto': no candidate has a form of {name} within {share:g} of its parameters"
        )
    if share is None:  # at one error: the fewest parameters
        return min(tried, key=lambda f: f.factors.n_params)
    return min(tried, key=lambda f: f.judged)


class _Job:
    """One layer with its data, to be fitted in one way or another."""

    def __init__(
        self,
        layer: DenseLayer,
        fit: Sequence[Statistics] | None,
        held: Sequence[Statistics] | None,
        options: Options,
    ) -> None:
        self.layer = layer
        self.weights = layer.group_weights()
        fit, held = rooted(fit, held)
        self.known = fit is not None and any(s.known for s in fit)
        self.stats = fit if self.known else None
        self.count = None if fit is None else fit[0].count
        self.held = held if self.known and held and all(s.known for s in held) else None
        self.options = options

    def best(self, method: Method) -> Factored:
        """The fit to the data, or a plainer one where that is better on inputs held out."""
        aware = self.stats is not None and self.layer.takes_moments(method)
        affine = self.options.affine and not self.layer.is_table
        tried = [self.fitted(method, aware=aware, affine=affine)]
        if self.held is not None:
            if affine:
                tried.append(self.fitted(method, aware=aware, affine=False))
            if aware and self._in_doubt(tried[0]):
                tried.append(self.fitted(method, aware=True, affine=affine, further=True))
                tried.append(self.fitted(method, aware=False, affine=False))
                if tried[0].weighted:
                    tried.append(self.fitted(method, aware=True, affine=affine, weighted=False))
        return min(tried, key=lambda f: f.judged)

    @cached_property
    def judging(self) -> OutputError | None:
        """By what candidates are compared: inputs held out, or those of the fit, as shrunk as so
        many samples warrant; None where there are none."""
        if self.held is not None:
            return OutputError(self.weights, self.held, weighted=True)
        if self.stats is None:
            return None
        assert self.expecting is not None
        return self.expecting.drawn()

    @cached_property
    def told(self) -> OutputError | None:
        """Of the outputs as they are, on inputs held out."""
        if self.held is None or all(s.metric is None for s in self.held):
            return None if self.held is None else self.judging
        return OutputError(self.weights, self.held)

    @cached_property
    def fitting(self) -> OutputError | None:
        """Of the outputs as they are, on the inputs that factors are fitted to."""
        return None if self.stats is None else OutputError(self.weights, self.stats)

    @cached_property
    def expecting(self) -> OutputError | None:
        """As `judging`, on the inputs that factors are fitted to."""
        if self.stats is None or all(s.metric is None for s in self.stats):
            return self.fitting
        return OutputError(self.weights, self.stats, weighted=True)

    @property
    def kept(self) -> str:
        """What there is of the second moments, of the first group that has some; empty for all."""
        known = [] if self.stats is None or self.layer.is_table else self.stats
        grams = [s.gram for s in known if s.known]
        return str(grams[0]) if grams and isinstance(grams[0], Compact) else ""

    def _in_doubt(self, fit: Factored) -> bool:
        """Whether the samples may be too few: by their number, or by what the fit to them does on
        others."""
        thin = (self.count or 0) < SAMPLES_PER_COLUMN * self.layer.columns
        return thin or fit.judged > OVERFITTED * fit.expected

    def fitted(
        self,
        method: Method,
        *,
        aware: bool,
        affine: bool,
        further: bool = False,
        weighted: bool = True,
    ) -> Factored:
        """By a method; with `further`, in moments half way between the shrinkage that the number of
        samples warrants and that which leaves nothing of them, in its logarithm. In the metric of
        the outputs, where there is one and the method takes it, unless not to be `weighted`."""
        affine = affine and self.stats is not None
        parts, amounts = [], []
        for k, weight in enumerate(self.weights):
            # Inputs of a group that are all zero say nothing about its weight.
            if not aware or self.stats is None or not self.stats[k].known:
                parts.append(_Part(weight, None))
                continue
            statistics = self.stats[k].centred() if affine else self.stats[k]
            metric = statistics.metric if weighted and method.takes_any_form else None
            amount = statistics.warranted
            if metric is not None:
                amount = max(amount, INPUT_SHRINKAGE)
            amounts.append(amount**0.5 if further else amount)
            parts.append(_Part(weight, statistics.shrunk(amounts[-1]), metric))
        with gathering(ConvergenceWarning) as unfinished:
            factors, method = self._decompose(method, parts)
        shifts: list[Tensor | None] = [None] * len(parts)
        if affine and self.stats is not None:
            groups = zip(self.stats, self.weights, factors, strict=True)
            shifts = [s.shift(w - f.to_dense().to(w.dtype)) for s, w, f in groups]
        whole = factors[0] if len(factors) == 1 else Grouped.stack(factors)

        weight_error = whole.rel_error(self.layer.weight)
        errors: dict[OutputError | None, float | None] = {None: None}
        for measure in (self.judging, self.told, self.fitting, self.expecting):
            if measure is not None and measure not in errors:
                errors[measure] = measure.of(factors, shifts)
        judged = errors[self.judging]
        return Factored(
            whole,
            method,
            weight_error,
            weight_error if judged is None else judged,
            errors[self.fitting],
            errors[self.told],
            self.count,
            data_aware=aware,
            shrinkage=max(amounts, default=None),
            moments=self.kept if aware else "",
            shift=torch.cat([s for s in shifts if s is not None]) if affine else None,
            finished=not unfinished,
            weighted=any(part.outputs is not None for part in parts),
            expected=errors[self.expecting] or 0.0,
            credit=0.0 if self.stats is None else self.stats[0].inputs.credit,
        )

    def _decompose(self, method: Method, parts: Sequence[_Part]) -> tuple[list[Factors], Method]:
        """Factors of each group at one rank, and the method with that rank."""
        state, right = self.options.random_state, self.options.right
        if right is not None:
            return [on_right(part.wanted, part.gram, right) for part in parts], method
        if method.by_share and len(parts) > 1:
            return self._in_common(method, parts)
        if method.by_share:
            return [part.decompose(method, state) for part in parts], method
        if method.error is not None:
            ranks = [part.rank_for(method, state) for part in parts]
            method = method.with_budget(rank=_largest(ranks))
        elif isinstance(method.rank, float):
            rung = method.ladder(self.layer.shape, self.layer.groups).within(method.rank)
            if rung is None:
                raise ArgumentError(
                    f"rank={method.rank:g}: no rank of {method.word} fits into this share of the "
                    f"{self.layer.weight.numel():,} parameters"
                )
            method = at_rung(method, rung)
        return [part.decompose(method, state) for part in parts], method

    def _in_common(self, method: Method, parts: Sequence[_Part]) -> tuple[list[Factors], Method]:
        """The same of groups that would have sizes of their own: those that most choose, at the
        rank that these give, or at the largest that one needs for the error."""
        state = self.options.random_state
        own = [part.decompose(method, state) for part in parts]
        sizes = [method.sizes_of(f) for f in own]
        most = max(sizes, key=sizes.count)
        pinned = replace(method, **most)
        found = {k: f for k, (f, s) in enumerate(zip(own, sizes, strict=True)) if s == most}
        if method.error is None:
            rank = method.rank_of(next(iter(found.values())))
        else:
            for k, part in enumerate(parts):
                found[k] = found[k] if k in found else part.decompose(pinned, state)
            rank = _largest([method.rank_of(f) for f in found.values()])
        exact = pinned.with_budget(rank=rank)
        return [
            found[k]
            if k in found and method.rank_of(found[k]) == rank
            else part.decompose(exact, state)
            for k, part in enumerate(parts)
        ], exact


class _Part:
    """One group's weight, what its inputs are known to be, and what its outputs count."""

    def __init__(
        self, weight: Tensor, statistics: Statistics | None, outputs: OutputMetric | None = None
    ) -> None:
        self.weight = weight
        self.outputs = outputs
        self.gram = None if statistics is None else statistics.gram
        self.wanted = weight
        if statistics is not None and statistics.lag is not None:
            self.wanted = corrected(weight, statistics.gram, statistics.lag)

    @cached_property
    def metric(self) -> SecondMoments | None:
        """Of the inputs. They are known to be sums of squares, which nobody has to look into."""
        return None if self.gram is None else SecondMoments.known(self.gram)

    @cached_property
    def whole_metric(self) -> SecondMoments | None:
        """The same for methods that take them as a matrix."""
        return None if self.gram is None else SecondMoments.known(dense(self.gram))

    def rank_for(self, method: Method, state: Any) -> Any:
        """The least rank within the method's error."""
        if method.finds_rank(self.gram is not None):
            return method.rank_of(self.decompose(method, state))
        return self._rung(method, state)

    def _rung(self, method: Method, state: Any) -> Any:
        """The least rank within the error, by bisection over those that save something; where none
        is, one that saves nothing: a search of its own would go on without use."""
        shape = tuple(self.weight.shape)
        ranks = [rung.own or rung.rank for rung in method.ladder(shape, 1).rungs]
        low, high = -1, len(ranks)
        at = high - 1  # the best there is comes first
        while high - low > 1:
            tried = self.decompose(method.with_budget(rank=ranks[at]), state)
            within = self._error(tried) <= (method.error or 0.0)
            low, high = (low, at) if within else (at, high)
            at = (low + high) // 2
        return ranks[high] if high < len(ranks) else method.rank_without_gain(shape)

    def _error(self, factors: Factors) -> float:
        gram = self.gram
        if gram is None:
            return factors.rel_error(self.weight)
        lost = (self.wanted - factors.to_dense()).flatten(1).double()
        whole = self.wanted.flatten(1).double()
        if self.outputs is not None:
            lost, whole = self.outputs.turned(lost), self.outputs.turned(whole)

        def energy(w: Tensor) -> float:
            return max(0.0, float(((w @ gram) * w).sum()))

        return math.sqrt(energy(lost) / energy(whole)) if energy(whole) > 0 else 0.0

    def decompose(self, method: Method, state: Any) -> Factors:
        """At the method's rank, or within its share or its error."""
        gram = None
        metric = self.metric if method.multiplies_moments else self.whole_metric
        if metric is not None and self.outputs is not None:
            gram = self.outputs.over(metric)
        elif metric is not None:
            gram = method.gram_of(metric, self.wanted)
        return method.decompose(self.wanted, gram, state)


def _largest(ranks: Sequence[Any]) -> Any:
    if isinstance(ranks[0], tuple):
        return tuple(max(rs) for rs in zip(*ranks, strict=True))
    return max(ranks)
