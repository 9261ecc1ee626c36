"""Plans of every size for one model, and cheap models of them: from one pass over inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from tensorlrf.compression._apply import carried_out
from tensorlrf.compression._survey import survey, without_skipped
from tensorlrf.compression._working_copy import put
from tensorlrf.compression.calibration._dense_layer import dense_layer_at
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.fit._fitting import OUTPUTS, Fitting
from tensorlrf.compression.frontier._cuts import check_cuts, cut
from tensorlrf.compression.frontier._quantised import Quantiser
from tensorlrf.compression.losses._probe import Probe
from tensorlrf.compression.plan._drafts import drafts_of, own_rank
from tensorlrf.compression.plan._matrix_ranks import matrix_ranks
from tensorlrf.compression.plan._plan import Plan
from tensorlrf.compression.plan._planned import planned
from tensorlrf.compression.plan._request import Request
from tensorlrf.compression.plan.allocation import AUTO, UNIFORM
from tensorlrf.compression.plan.budget import Budget
from tensorlrf.compression.plan.sensitivity import Sensitivity
from tensorlrf.compression.plan.times._seconds import Sample
from tensorlrf.compression.plan.times._whole import Whole
from tensorlrf.compression.report._report import Report
from tensorlrf.errors import ArgumentError
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.nn.copies import copy_of, replica

FITTING = Fitting(
    "independent", affine=False, batch_norm=True, holdout=0.0, rerun=False, memory_limit=None,
    random_state=0, progress=False, metric=OUTPUTS,
)  # fmt: skip
"""By which plans are carried out on what is known."""


@dataclass(frozen=True)
class Size:
    """Of a whole model, parameters that are shared counted once."""

    params: int
    bytes: int


@dataclass
class Prospect:
    """A model, what its layers can lose, and what plans are made by.

    request  what plans are asked for beside the share
    probe    of the layers that may be factored
    data     what it looks at
    """

    model: nn.Module
    request: Request
    probe: Probe
    data: Calibration
    _plans: dict[tuple[float, bool], Plan] = field(default_factory=dict)
    _losses: dict[Hashable, float | None] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, request: Request, data: Calibration) -> Prospect:
        """Raises ArgumentError for what no plan can be made of."""
        first = planned(model, _at(request, 1.0, None), None)[0]
        if request.sensitivity is not None:
            request.sensitivity.check(first.architecture)
        names = [row.name for row in first.layers if row.eligible]
        probe = Probe(
            model, names, data, request.loss, request.readout, request.random_state,
            request.progress, every=True, kept=request.kept,
        )  # fmt: skip
        return cls(model, request, probe, data)

    @property
    def rule(self) -> str:
        """By which shares are shared out; empty where a sensitivity was given."""
        return "" if self.request.sensitivity is not None else self.request.allocation.rule

    @cached_property
    def sensitivity(self) -> Sensitivity:
        """By the rule, or as it was given."""
        if self.request.sensitivity is not None:
            return self.request.sensitivity
        with torch.inference_mode(False), without_autocast():
            return self.probe.sensitivity(AUTO if self.rule == UNIFORM else self.rule)

    @property
    def unit(self) -> str:
        """Of losses on inputs held out."""
        return self.probe.output_loss.unit

    @property
    def dense(self) -> Size:
        """Of the given model."""
        return Size(*_numbers(self.model))

    def plan(self, share: float) -> Plan:
        """With so much kept; with "auto" uniform ranks where the model then loses less on inputs
        held out. Raises ArgumentError for a share too small for any rank."""
        if self.rule != AUTO:
            return self._made(share)
        return min((self._made(share), self._made(share, uniform=True)), key=self._badness)

    def sketched(self, share: float) -> Plan | None:
        """The same by predictions alone; None for a share too small for any rank."""
        try:
            return self._made(share)
        except ArgumentError:
            if not self._plans:
                raise  # it is not the share
            return None

    def _made(self, share: float, *, uniform: bool = False) -> Plan:
        uniform = uniform or self.rule == UNIFORM
        if (share, uniform) not in self._plans:
            asked = _at(self.request, share, None if uniform else self.sensitivity)
            self._plans[share, uniform] = planned(self.model, asked, None)[0]
        return self._plans[share, uniform]

    def predicted(self, plan: Plan) -> float | None:
        """The sum of what its layers are said to lose; None where that is not known."""
        known = {row.name: row for row in self.sensitivity.layers}
        total = 0.0
        for row in plan.factored:
            if row.params_after is None or row.name not in known:
                return None
            total += known[row.name].loss_at(row.params_after)
        return total

    def loss(self, plan: Plan) -> float | None:
        """Of the cheap model of a plan, on the inputs held out; None where its outputs have NaN."""
        ranks = matrix_ranks(plan.layers)
        key = tuple(ranks.items())
        if key not in self._losses:
            with torch.inference_mode(False), without_autocast():
                self._losses[key] = _finite(self.probe.loss_at(ranks))
        return self._losses[key]

    def _badness(self, plan: Plan) -> float:
        loss = self.loss(plan)
        return math.inf if loss is None else loss

    def truncated(self, plan: Plan) -> nn.Module:
        """The cheap model of a plan: its layers cut to as many parameters along the directions of
        their outputs, as dense weights."""
        with torch.inference_mode(False), without_autocast():
            return self.probe.cut(matrix_ranks(plan.layers))

    def carried_out(self, plan: Plan, example: Any) -> tuple[nn.Module, Report]:
        """A plan of low rank, from the directions of the layers' outputs, and its report. Raises
        ArgumentError for other formats."""
        check_cuts(plan.factored)
        rows = {row.name: row for row in plan.factored}
        known = {}
        with torch.inference_mode(False), without_autocast():
            for bases in self.probe.parts():
                for name in rows.keys() & bases.keys():
                    known[name] = cut(rows[name], dense_layer_at(self.model, name), bases[name])
        missing = [name for name in rows if name not in known]
        if missing:
            raise ArgumentError(
                f"the inputs did not reach {', '.join(missing)[:300]}, of which nothing is known; "
                "leave it out with skip="
            )
        return carried_out(
            self.model, plan, survey(self.model), self.data, FITTING, example, known=known
        )

    def size(self, plan: Plan) -> Size:
        """Of the model that a plan makes."""
        params, size = _numbers(self.model)
        for row in plan.factored:
            gone = row.params - (row.params if row.params_after is None else row.params_after)
            params -= gone
            size -= gone * dense_layer_at(self.model, row.name).weight.element_size()
        return Size(params, size)

    @property
    def has_linear_layers(self) -> bool:
        """Among those that may be factored."""
        layers = [dense_layer_at(self.model, name) for name in self.probe.names]
        return any(layer.taps is None and not layer.is_table for layer in layers)

    def quantised(self, quantiser: Quantiser) -> nn.Module:
        """The model with the weights of the same layers rounded."""
        if quantiser.activations:
            return self.running(quantiser)
        with torch.inference_mode(False), without_autocast():
            working = copy_of(self.model)
            for name in self.probe.names:
                layer = dense_layer_at(working, name)
                layer.make_ordinary()
                layer.write(quantiser.rounded(layer.weight))
        return working

    def running(self, quantiser: Quantiser) -> nn.Module:
        """The same on the integers themselves, as torch can run it."""
        with torch.inference_mode(False), without_autocast():
            model = working = replica(self.model)
            sites = {name: dense_layer_at(working, name) for name in self.probe.names}
            for one in survey(working):
                if one.name in sites and not one.is_table:  # torch looks up no integers
                    model = put(model, one.places, quantiser.layer(sites[one.name]))
        return model.eval()

    def quantised_size(self, quantiser: Quantiser) -> Size:
        """Of that."""
        params, size = _numbers(self.model)
        for name in self.probe.names:
            site = dense_layer_at(self.model, name)
            weight = site.weight
            if site.is_table and quantiser.activations:
                continue
            size += quantiser.n_bytes(weight) - weight.numel() * weight.element_size()
        return Size(params, size)

    def whole(self, sample: Sample) -> Whole:
        """The model with the times of the layers that may be factored, to time plans with. Raises
        ArgumentError for methods whose sizes only the fit can tell."""
        request = self.request
        found = without_skipped(survey(self.model), self.model, request.skip, request.include)
        drafts = [own_rank(draft) for draft in drafts_of(found, request.methods)]
        open_ = [
            d
            for d in drafts
            if d.method is not None and d.ladder and d.ladder.rungs and not d.found.is_table
        ]
        with torch.inference_mode(False), without_autocast():
            return Whole.of("example", self.model, open_, sample)

    def quantised_loss(
        self, quantiser: Quantiser, quantised: Callable[[], nn.Module]
    ) -> float | None:
        """Of that beside the given model, on the inputs held out."""
        with torch.inference_mode(False), without_autocast():
            return _finite(
                self.request.kept.number(
                    ("loss", quantiser.word), lambda: self.probe.loss_of(quantised())
                )
            )


def _at(request: Request, share: float, sensitivity: Sensitivity | None) -> Request:
    """For a plan that keeps so much, with uniform ranks where nothing tells of the layers."""
    allocation = replace(request.allocation, rule=UNIFORM if sensitivity is None else AUTO)
    budget = Budget("keep_params", share)
    return replace(request, budget=budget, allocation=allocation, sensitivity=sensitivity)


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


def _numbers(model: nn.Module) -> tuple[int, int]:
    own = list(model.parameters())
    return sum(p.numel() for p in own), sum(p.numel() * p.element_size() for p in own)
