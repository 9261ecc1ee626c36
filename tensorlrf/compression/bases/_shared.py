"""Where one right factor for several layers is better than one for each, at equal parameters.

With e_i the relative error of the outputs of layer i, of m_i outputs and n inputs, and r_i the rank
that its plan gives it, what layers lose is

    sum_i w_i e_i^2.

The ranks of a plan tell the w_i: where they are best a parameter gains alike in all layers, w_i
times what one rank more would take from e_i^2, over the m_i + n parameters that it costs, is one
number. So a basis in common is judged in the sum in which ranks apart are at their best. Its own
rank is what the parameters of all allow,

    R = floor(sum_i r_i (m_i + n) / (sum_i m_i + n)),

and its errors are those on inputs held out, as the errors of the layers apart.

All that is found before the model is changed, on inputs that the given model delivers; the left
factors are fitted later on, to what the layers get then.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from tensorlrf.compression.bases._groups import Group, groups_of
from tensorlrf.compression.bases._left import on_right
from tensorlrf.compression.bases._words import LAYERS
from tensorlrf.compression.calibration._calibrate import at_once
from tensorlrf.compression.calibration._dense_layer import DenseLayer, dense_layer_at
from tensorlrf.compression.calibration._layer_moments import (
    Calibration,
    LayerMoments,
    check_statistics,
)
from tensorlrf.compression.calibration._statistics import OutputError, Statistics
from tensorlrf.compression.calibration._trace import record
from tensorlrf.compression.calibration.stacks._pools import Pools
from tensorlrf.compression.fit._factor import INPUT_SHRINKAGE
from tensorlrf.compression.plan._plan import Plan
from tensorlrf.compression.report._rows import SharedBasis
from tensorlrf.decomposition import shared_svd, svd
from tensorlrf.decomposition.linalg.compact import dense
from tensorlrf.factors import LowRank

CLEARLY = 0.95
"""Of what layers lose apart that a basis in common may leave: its products have a higher rank, so
that what is nearly equal stays apart."""

SWEEPS = 10
"""Of a right factor in the moments of each layer, at most: the left factors are fitted anew."""

NEAR = 0.1
"""Part of a rank on either side of it over which its gain is taken."""


@dataclass(frozen=True)
class Basis:
    """The right factor (r, n) of several layers."""

    names: tuple[str, ...]
    right: Tensor

    @property
    def rank(self) -> int:
        return len(self.right)


@dataclass
class Bases:
    """What came of looking for bases in common.

    kept    layer -> its basis
    told    of every group that was tried
    """

    kept: dict[str, Basis] = field(default_factory=dict)
    told: list[SharedBasis] = field(default_factory=list)

    def planned(self, plan: Plan) -> Plan:
        """The plan with the ranks of what is shared."""
        rows = []
        for row in plan.layers:
            basis = self.kept.get(row.name)
            if basis is not None and row.method is not None:
                row = replace(row, method=row.method.with_budget(rank=basis.rank))
            rows.append(row)
        return replace(plan, layers=tuple(rows))


def bases_in(model: nn.Module, plan: Plan, words: Sequence[str], data: Calibration | None) -> Bases:
    """Bases for layers of a plan, by words and globs in turn; a layer has one at the most."""
    found = Bases()
    for word in words:
        rows = [row for row in plan.factored if row.name not in found.kept]
        groups = groups_of(word, model, rows, data)
        ranks = {row.name: row.rank for row in rows if isinstance(row.rank, int)}
        # Layers of one kind over all depth are seen together, and then given up.
        for part in [[group] for group in groups] if word == LAYERS else [groups]:
            for sites, apart in _sites(model, part, ranks, data):
                _try(sites, found, apart=apart)
    return found


def _sites(
    model: nn.Module, groups: Sequence[Group], ranks: Mapping[str, int], data: Calibration | None
) -> Iterator[tuple[list[Site], bool]]:
    """The layers of each group as soon as all of them have been seen."""
    known: dict[str, Site] = {}
    waiting = list(groups)
    names = [name for group in groups for name in group.names]
    layers = {name: dense_layer_at(model, name) for name in names}
    pools: Pools | None = None

    def site(name: str, moments: LayerMoments | None) -> Site:
        pool = None if pools is None else pools.of(name)
        if moments is None and pool is not None and data is not None:  # an expert without rows
            moments = data.moments_of(name, layers[name], lags=False)
        if moments is None:
            return Site(name, layers[name], ranks[name])
        if pool is not None:
            moments.draw(pool)
        fit, held = moments.taken()
        for statistics in (fit, held or ()):
            check_statistics(name, statistics)
        return Site(name, layers[name], ranks[name], fit[0], held[0] if held else None)

    if data is not None and names:
        trace = record(model, names, data.batches[0])
        pools = Pools(model, names, trace, data)
        for seen in at_once(model, names, trace, data):
            known.update({name: site(name, moments) for name, moments in seen})
            for group in [g for g in waiting if known.keys() >= set(g.names)]:
                waiting.remove(group)
                yield [known.pop(name) for name in group.names], group.apart
    for group in waiting:
        for name in group.names:
            if name not in known:
                known[name] = site(name, None)
        yield [known.pop(name) for name in group.names], group.apart


@dataclass
class Site:
    """A layer with what is known of its inputs: of those to fit to, and of those held out."""

    name: str
    layer: DenseLayer
    rank: int
    fit: Statistics | None = None
    held: Statistics | None = None

    def __post_init__(self) -> None:
        if self.fit is not None and not self.fit.known:
            self.fit = None
        if self.held is not None and (self.fit is None or not self.held.known):
            self.held = None
        metric = None if self.fit is None else self.fit.metric
        self.metric = None if metric is None else metric.rooted()

    @property
    def params(self) -> int:
        """By itself."""
        m, n = self.layer.shape
        return self.rank * (m + n)

    @cached_property
    def weight(self) -> Tensor:
        """L^T W in float64, whose plain norm is the metric of the outputs."""
        own = self.layer.weight
        return own.to(torch.float64) if self.metric is None else self.metric.turned(own)

    @cached_property
    def gram(self) -> Tensor:
        """Of the inputs, as shrunk as they warrant."""
        if self.fit is None:
            return torch.eye(self.layer.columns, dtype=torch.float64, device=self.layer.device)
        amount = self.fit.warranted
        amount = amount if self.metric is None else max(amount, INPUT_SHRINKAGE)
        return dense(self.fit.shrunk(amount).gram)

    @cached_property
    def energies(self) -> Tensor:
        """Of the outputs, rank by rank."""
        values: Tensor = torch.linalg.svdvals(self.weight @ torch.linalg.cholesky(self.gram))
        return values.square()

    @cached_property
    def counts(self) -> float:
        """w, by the gain of the rank that it was given."""
        whole, r = float(self.energies.sum()), self.rank
        some = max(1, round(NEAR * r))
        near = self.energies[max(0, r - some) : r + some]
        gain = float(near.mean()) / whole if whole > 0 and len(near) else 0.0
        return sum(self.layer.shape) / gain if gain > 0 else 0.0

    @cached_property
    def stretch(self) -> float:
        """What L^T W is multiplied by for squared errors that add up."""
        whole = float(self.energies.sum())
        return math.sqrt(self.counts / whole) if whole > 0 else 0.0

    @cached_property
    def judging(self) -> OutputError | None:
        seen = self.held
        if seen is None and self.fit is not None:
            seen = self.fit.shrunk(self.fit.warranted)
        if seen is None:
            return None
        return OutputError([self.weight], [replace(seen, metric=None, lag=None)])

    def lost(self, factors: LowRank) -> float:
        """w e^2 of factors of `weight`."""
        if self.judging is not None:
            return self.counts * self.judging.of([factors]) ** 2
        return self.counts * factors.rel_error(self.weight) ** 2

    @cached_property
    def lost_apart(self) -> float:
        """By itself, at its rank."""
        return self.lost(svd(self.weight, self.rank, gram=self.gram))

    def on(self, right: Tensor) -> LowRank:
        """The best factors on a right factor (r, n)."""
        return on_right(self.weight, self.gram, right)


@dataclass(frozen=True)
class _Trial:
    """Layers on one basis, and what they lose on it."""

    basis: Basis
    lost: float

    @classmethod
    def of(cls, sites: Sequence[Site]) -> _Trial | None:
        """At equal parameters; None where these are not enough for a rank of one."""
        n = sites[0].layer.columns
        rows = sum(site.layer.shape[0] for site in sites)
        rank = min(sum(site.params for site in sites) // (rows + n), rows, n)
        if rank < 1:
            return None
        stretched = [site.stretch * site.weight for site in sites]
        grams = _one(sites)
        sweeps = SWEEPS if isinstance(grams, list) else None
        joint = shared_svd(stretched, rank, grams=grams, n_iter_max=sweeps)
        right: Tensor = torch.linalg.qr(joint[0].right.T)[0].T
        lost = sum(site.lost(site.on(right)) for site in sites)
        own = sites[0].layer.weight.dtype
        return cls(Basis(tuple(site.name for site in sites), right.to(own).contiguous()), lost)


def _one(sites: Sequence[Site]) -> Tensor | list[Tensor]:
    """The moments of all, where they are fed the same; else those of each."""
    inputs = {None if site.fit is None else id(site.fit.inputs) for site in sites}
    return sites[0].gram if len(inputs) == 1 else [site.gram for site in sites]


def _try(sites: list[Site], found: Bases, *, apart: bool) -> None:
    """All on one basis; else, or where neighbours are `apart`, as many neighbours as gain by it."""
    trial = None if apart else _Trial.of(sites)
    if trial is not None and _settled(sites, trial, found):
        return
    if not apart and len(sites) == 2:
        return
    at = 0
    while at < len(sites) - 1:
        end, best, lost = at + 1, None, sites[at].lost_apart
        while end < len(sites):
            more = _Trial.of(sites[at : end + 1])
            if more is None or not more.lost < CLEARLY * (lost + sites[end].lost_apart):
                if best is None and more is not None:
                    _settled(sites[at : end + 1], more, found)
                break
            best, lost, end = more, more.lost, end + 1
        if best is not None:
            _settled(sites[at:end], best, found)
        at = end


def _settled(sites: Sequence[Site], trial: _Trial, found: Bases) -> bool:
    """Tell of a trial; whether it is kept."""
    apart = sum(site.lost_apart for site in sites)
    counts = sum(site.counts for site in sites)
    kept = trial.lost < CLEARLY * apart
    found.told.append(
        SharedBasis(
            layers=trial.basis.names,
            rank=trial.basis.rank,
            ranks=tuple(site.rank for site in sites),
            error=math.sqrt(trial.lost / counts) if counts > 0 else 0.0,
            error_apart=math.sqrt(apart / counts) if counts > 0 else 0.0,
            held_out=any(site.held is not None for site in sites),
            kept=kept,
        )
    )
    if kept:
        found.kept.update(dict.fromkeys(trial.basis.names, trial.basis))
    return kept
