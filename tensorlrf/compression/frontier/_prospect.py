"""Plans of every size for one model, and cheap models of them: from one pass over inputs."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import nn

from tensorlrf.compression.calibration._dense_layer import dense_layer_at
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.frontier._quantised import Quantiser
from tensorlrf.compression.losses._probe import Probe
from tensorlrf.compression.plan._plan import Plan
from tensorlrf.compression.plan._planned import planned
from tensorlrf.compression.plan._request import Request
from tensorlrf.compression.plan.allocation import AUTO, UNIFORM
from tensorlrf.compression.plan.budget import Budget
from tensorlrf.compression.plan.sensitivity import Sensitivity
from tensorlrf.errors import ArgumentError
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.nn.copies import copy_of


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
    """

    model: nn.Module
    request: Request
    probe: Probe
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
            request.progress,
        )  # fmt: skip
        return cls(model, request, probe)

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
        ranks = matrix_ranks(plan)
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
            return self.probe.cut(matrix_ranks(plan))

    def size(self, plan: Plan) -> Size:
        """Of the model that a plan makes."""
        params, size = _numbers(self.model)
        for row in plan.factored:
            gone = row.params - (row.params if row.params_after is None else row.params_after)
            params -= gone
            size -= gone * dense_layer_at(self.model, row.name).weight.element_size()
        return Size(params, size)

    def quantised(self, quantiser: Quantiser) -> tuple[nn.Module, Size]:
        """The model with the weights of the same layers rounded, and its size then."""
        params, size = _numbers(self.model)
        with torch.inference_mode(False), without_autocast():
            working = copy_of(self.model)
            for name in self.probe.names:
                layer = dense_layer_at(working, name)
                layer.make_ordinary()
                weight = layer.weight
                layer.write(quantiser.rounded(weight))
                size += quantiser.n_bytes(weight) - weight.numel() * weight.element_size()
        return working, Size(params, size)

    def model_loss(self, model: nn.Module) -> float | None:
        """Of any model beside the given one, on the inputs held out."""
        with torch.inference_mode(False), without_autocast():
            return _finite(self.probe.loss_of(model))


def matrix_ranks(plan: Plan) -> dict[str, int]:
    """The ranks of low-rank matrices that have as many parameters, of layers that get factors."""
    ranks = {}
    for row in plan.factored:
        if row.params_after is not None:
            a_rank = row.shape[0] + row.groups * math.prod(row.shape[1:])
            ranks[row.name] = max(1, row.params_after // a_rank)
    return ranks


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
