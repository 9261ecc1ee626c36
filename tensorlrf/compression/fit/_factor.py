"""One layer: its factors, fitted to what calibration has seen, and how far off they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tensorlrf.compression._methods import CP, SVD, Auto, Method, Tucker
from tensorlrf.compression._structured import Structured
from tensorlrf.compression.calibration._calibrate import Seen, check_statistics
from tensorlrf.compression.calibration._correction import corrected
from tensorlrf.compression.calibration._site import Site
from tensorlrf.compression.calibration._statistics import OutputError, Statistics
from tensorlrf.decomposition import cp, fit_svd, svd, tucker
from tensorlrf.decomposition.second_moments import SecondMoments
from tensorlrf.errors import ArgumentError, ConvergenceWarning, gathering
from tensorlrf.factors import Factors, Grouped, LowRank, TuckerFactors

SAMPLES_PER_COLUMN = 4
"""With fewer samples than this times n, the moments fit the samples more than the data."""

OVERFITTED = 1.1
"""A held-out error above this many times the one of the fit casts doubt on it."""

ASVD_ALPHA = 0.5


@dataclass(frozen=True)
class Factored:
    """Factors of one weight, and how far they are from it.

    factors        in the layout of the site's weight
    method         with the rank that was taken
    weight_error   relative Frobenius error, of the factors as stored
    fit_error      relative error of the outputs on the inputs that they were fitted to, against the
                   target; None where there were none
    held_error     the same on inputs held out
    judged         by what candidates are compared: the error on inputs held out; where there are
                   none, the one of the outputs in the moments as shrunk as these samples warrant,
                   or of the weight where there are no inputs
    samples        columns that the fit is made of
    data_aware     whether these took part in it
    shrinkage      how far their moments were drawn towards their mean eigenvalue, 0 to 1
    shift          (O,) to be added to the bias; None where the bias stays
    finished       whether its sweeps came near their end
    """

    factors: Factors
    method: Method
    weight_error: float
    judged: float
    fit_error: float | None = None
    held_error: float | None = None
    samples: int | None = None
    data_aware: bool = False
    shrinkage: float | None = None
    shift: Tensor | None = None
    finished: bool = True


@dataclass(frozen=True)
class Options:
    """affine        let the bias make good what it can
    random_state  of the methods that draw
    """

    affine: bool = False
    random_state: int | torch.Generator | None = 0


def factor(name: str, site: Site, method: Method, seen: Seen | None, options: Options) -> Factored:
    """Factors of the layer's weight by a method with a rank, a share or an error.

    Where part of the calibration is held out and the fit is in doubt (few samples, or a higher
    error there), more shrinkage and the plain fit are tried too, and an affine one is kept only
    where it lowers the held-out error. `seen` is of no use afterwards.
    Raises ArgumentError, naming the layer, where its inputs had NaN or Inf.
    """
    fit = held = None
    if seen is not None:
        fit, held = seen.taken()
        check_statistics(name, fit)
        if held is not None:
            check_statistics(name, held)
    job = _Job(site, fit, held, options)
    if not isinstance(method, Auto):
        return job.best(method)
    share = method.rank
    assert isinstance(share, float) or method.error is not None
    candidates = {c.for_shape(site.shape) for c in method.candidates}
    tried = []
    for candidate in sorted(candidates, key=lambda c: c.word != "svd"):
        given = candidate
        if candidate.why_not(site.shape, site.groups):
            continue
        if candidate.by_share and isinstance(share, float):
            given = candidate.with_budget(rank=share)
        elif isinstance(share, float):
            rank = rank_within(candidate, site.shape, site.groups, share)
            if rank is None:
                continue
            given = at_rank(candidate, rank)
        else:
            given = candidate.with_budget(error=method.error)
        tried.append(job.best(given))
    if not tried:
        raise ArgumentError(
            f"method='auto': no candidate has a form of {name} within {share:g} of its parameters"
        )
    if share is None:  # at one error: the fewest parameters
        return min(tried, key=lambda f: f.factors.n_params)
    return min(tried, key=lambda f: f.judged)


def rank_within(method: Method, shape: tuple[int, ...], groups: int, share: float) -> Any:
    """The highest rank whose parameters are at most `share` of the weight's; None if there is
    none."""
    ladder = method.ladder(shape, groups)
    within = [r for r in ladder.rungs if r.params <= share * ladder.dense * (1 + 1e-12)]
    return within[-1].rank if within else None


def at_rank(method: Method, rank: Any) -> Method:
    """The method at a rung of its ladder. Tucker with its input side whole is an SVD."""
    if isinstance(method, Tucker) and isinstance(rank, int):
        return SVD(rank=rank)
    return method.with_budget(rank=rank)


class _Job:
    """One layer with its data, to be fitted in one way or another."""

    def __init__(
        self,
        site: Site,
        fit: Sequence[Statistics] | None,
        held: Sequence[Statistics] | None,
        options: Options,
    ) -> None:
        self.site = site
        self.weights = site.group_weights()
        self.known = fit is not None and any(s.known for s in fit)
        self.stats = fit if self.known else None
        self.count = None if fit is None else fit[0].count
        self.held = held if self.known and held and all(s.known for s in held) else None
        self.options = options

    def best(self, method: Method) -> Factored:
        """The fit to the data, or a plainer one where that is better on inputs held out."""
        aware, affine = self.stats is not None and takes_metric(method), self.options.affine
        tried = [self.fitted(method, aware=aware, affine=affine)]
        if self.held is not None:
            if affine:
                tried.append(self.fitted(method, aware=aware, affine=False))
            if aware and self._in_doubt(tried[0]):
                tried.append(self.fitted(method, aware=True, affine=affine, further=True))
                tried.append(self.fitted(method, aware=False, affine=False))
        return min(tried, key=lambda f: f.judged)

    @cached_property
    def judging(self) -> OutputError | None:
        """By what candidates are compared: inputs held out, or those of the fit, as shrunk as so
        many samples warrant; None where there are none."""
        if self.held is not None:
            return OutputError(self.weights, self.held)
        if self.stats is None:
            return None
        return OutputError(self.weights, [s.shrunk(s.warranted) for s in self.stats])

    @cached_property
    def fitting(self) -> OutputError | None:
        """On the inputs that factors are fitted to."""
        return None if self.stats is None else OutputError(self.weights, self.stats)

    def _in_doubt(self, fit: Factored) -> bool:
        """Whether the samples may be too few: by their number, or by what the fit to them does on
        others."""
        thin = (self.count or 0) < SAMPLES_PER_COLUMN * self.site.columns
        return thin or fit.judged > OVERFITTED * (fit.fit_error or 0.0)

    def fitted(
        self, method: Method, *, aware: bool, affine: bool, further: bool = False
    ) -> Factored:
        """By a method; with `further`, in moments half way between the shrinkage that the number of
        samples warrants and that which leaves nothing of them, in its logarithm."""
        affine = affine and self.stats is not None
        parts, amounts = [], []
        for k, weight in enumerate(self.weights):
            # Inputs of a group that are all zero say nothing about its weight.
            if not aware or self.stats is None or not self.stats[k].known:
                parts.append(_Part(weight, None))
                continue
            statistics = self.stats[k].centred() if affine else self.stats[k]
            amount = statistics.warranted
            amounts.append(amount**0.5 if further else amount)
            parts.append(_Part(weight, statistics.shrunk(amounts[-1])))
        with gathering(ConvergenceWarning) as unfinished:
            factors, method = self._decompose(method, parts)
        shifts: list[Tensor | None] = [None] * len(parts)
        if affine and self.stats is not None:
            groups = zip(self.stats, self.weights, factors, strict=True)
            shifts = [s.shift(w - f.to_dense().to(w.dtype)) for s, w, f in groups]
        whole = factors[0] if len(factors) == 1 else Grouped.stack(factors)

        weight_error = whole.rel_error(self.site.weight)
        judged = None if self.judging is None else self.judging.of(factors, shifts)
        return Factored(
            whole,
            method,
            weight_error,
            weight_error if judged is None else judged,
            None if self.fitting is None else self.fitting.of(factors, shifts),
            None if self.held is None else judged,
            self.count,
            data_aware=aware,
            shrinkage=max(amounts, default=None),
            shift=torch.cat([s for s in shifts if s is not None]) if affine else None,
            finished=not unfinished,
        )

    def _decompose(self, method: Method, parts: Sequence[_Part]) -> tuple[list[Factors], Method]:
        """Factors of each group at one rank, and the method with that rank."""
        state = self.options.random_state
        if isinstance(method, Structured):
            return [part.decompose(method, state) for part in parts], method
        if method.error is not None:
            ranks = [part.rank_for(method, state) for part in parts]
            method = method.with_budget(rank=_largest(ranks))
        elif isinstance(method.rank, float):
            rank = rank_within(method, self.site.shape, self.site.groups, method.rank)
            if rank is None:
                raise ArgumentError(
                    f"rank={method.rank:g}: no rank of {method.word} fits into this share of the "
                    f"{self.site.weight.numel():,} parameters"
                )
            method = at_rank(method, rank)
        return [part.decompose(method, state) for part in parts], method


class _Part:
    """One group's weight, and what its inputs are known to be."""

    def __init__(self, weight: Tensor, statistics: Statistics | None) -> None:
        self.weight = weight
        self.gram = None if statistics is None else statistics.gram
        self.wanted = weight
        if statistics is not None and statistics.lag is not None:
            self.wanted = corrected(weight, statistics.gram, statistics.lag)

    @cached_property
    def metric(self) -> SecondMoments | None:
        """Of the inputs. They are known to be sums of squares, which nobody has to look into."""
        return None if self.gram is None else SecondMoments.known(self.gram)

    def rank_for(self, method: Method, state: Any) -> Any:
        """The least rank within the method's error."""
        error = method.error
        if isinstance(method, SVD):
            metric = self._metric(method)
            options = method.options() if metric is None else {}
            fit = fit_svd(self.wanted, error=error, gram=metric, random_state=state, **options)
            return fit.factors.rank
        if isinstance(method, Tucker):
            if self.gram is None:
                found = tucker(
                    self.wanted, error=error, modes=(0, 1), random_state=state, **method.options()
                )
                return found.rank[:2]
            return self._rung(method, state)
        assert isinstance(method, CP)
        return self._rung(method, state)

    def _rung(self, method: CP | Tucker, state: Any) -> Any:
        """The least rank within the error, by bisection over those that save something; where none
        is, one that saves nothing, for `cp(error=)` would search on without use. In the metric of
        inputs no error bound of Tucker sums up, so that there is no shorter way."""
        shape = tuple(self.weight.shape)
        ladder = method.ladder(shape, 1)
        ranks: list[Any] = [rung.rank for rung in ladder.rungs]
        if isinstance(method, Tucker):
            ranks = [r if isinstance(r, tuple) else (r, shape[1]) for r in ranks]
        low, high = -1, len(ranks)
        at = high - 1  # the best there is comes first
        while high - low > 1:
            tried = self.decompose(method.with_budget(rank=ranks[at]), state)
            within = self._error(tried) <= (method.error or 0.0)
            low, high = (low, at) if within else (at, high)
            at = (low + high) // 2
        if high < len(ranks):
            return ranks[high]
        return shape[:2] if isinstance(method, Tucker) else ladder.dense // (sum(shape) + 1) + 1

    def _error(self, factors: Factors) -> float:
        gram = self.gram
        if gram is None:
            return factors.rel_error(self.weight)
        lost = (self.wanted - factors.to_dense()).flatten(1).double()
        whole = self.wanted.flatten(1).double()

        def energy(w: Tensor) -> float:
            return max(0.0, float(((w @ gram) * w).sum()))

        return math.sqrt(energy(lost) / energy(whole)) if energy(whole) > 0 else 0.0

    def decompose(self, method: Method, state: Any) -> Factors:
        """At the method's rank."""
        options = method.options()
        rank: Any = method.rank
        if isinstance(method, SVD):
            metric = self._metric(method)
            options = options if metric is None else {}
            matrix: LowRank = svd(self.wanted, rank, gram=metric, random_state=state, **options)
            return matrix
        if isinstance(method, Tucker):
            if self.gram is not None:
                options = {k: options[k] for k in ("n_iter_max", "tol")}
            found: TuckerFactors = tucker(
                self.wanted, rank, modes=(0, 1), gram=self.metric, random_state=state, **options
            )
            return found
        if isinstance(method, Structured):
            return method.decompose(self.wanted, self.metric, state)
        assert isinstance(method, CP)
        if self.gram is not None:
            options = {k: options[k] for k in ("n_iter_max", "tol", "init", "n_restarts")}
        return cp(self.wanted, rank, gram=self.metric, random_state=state, **options)

    def _metric(self, method: SVD) -> SecondMoments | Tensor | None:
        if self.gram is None:
            return None
        if method.metric == "full":
            assert self.metric is not None
            return self.metric.with_outputs(self.wanted)
        # (E x_i^2)^alpha: columns scaled by the root of it, rms^alpha.
        return torch.diag(self.gram.diagonal().clamp(min=0) ** ASVD_ALPHA)


def takes_metric(method: Method) -> bool:
    """Whether the method is to be fitted to inputs."""
    return not (isinstance(method, SVD) and method.metric == "identity")


def _largest(ranks: Sequence[Any]) -> Any:
    if isinstance(ranks[0], tuple):
        return tuple(max(rs) for rs in zip(*ranks, strict=True))
    return max(ranks)
