"""One budget becomes a rank of each layer: by a rule, and judged where the rule is to be found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn

from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration.batches import Batch
from tensorlrf.compression.checkpoint._architecture import fingerprint
from tensorlrf.compression.losses._probe import Probe
from tensorlrf.compression.moments._moments import Moments
from tensorlrf.compression.plan._allocated import Choice, Layer, allocated
from tensorlrf.compression.plan._drafts import Draft
from tensorlrf.compression.plan._matrix_ranks import matrix_ranks
from tensorlrf.compression.plan._prices import (
    bytes_of,
    flops_of,
    params_of,
    reached,
    times_of_rungs,
)
from tensorlrf.compression.plan._request import Request
from tensorlrf.compression.plan._uniform import Scale
from tensorlrf.compression.plan.allocation import AUTO, UNIFORM, Allotment, Candidate
from tensorlrf.compression.plan.budget import LATENCY, OF_PARAMS, Budget
from tensorlrf.compression.plan.sensitivity import Sensitivity
from tensorlrf.compression.plan.times._confirmed import Ranks, confirmed
from tensorlrf.compression.plan.times._seconds import Sample
from tensorlrf.compression.plan.times._whole import Whole
from tensorlrf.errors import ArgumentError


@dataclass(frozen=True)
class Way:
    """How a budget is shared out.

    by          by what is least lost; None for uniform ranks
    predicts    what those are predicted to lose, where that is known
    candidates  what was judged to come to it
    """

    by: Sensitivity | None
    predicts: Sensitivity | None
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class Sharing:
    """A budget that is to be shared out over drafts, none of which has one of its own.

    weighs  whether what errors of outputs cost is gathered on the way
    moments  of inputs, where there are no batches
    """

    model: nn.Module
    drafts: Sequence[Draft]
    budget: Budget
    request: Request
    data: Calibration | None
    weighs: bool = False
    moments: Moments | None = None

    def shared_out(self) -> Ranks:
        """By the allocation's rule; with "auto" with uniform ranks, where the model then loses less
        on inputs held out. A budget of time is confirmed in the whole model."""
        if self.budget.word != LATENCY:
            return self._ranks(self._way(self.budget), self.budget)
        dense = self._whole.dense_seconds()
        layers = sum(layer.scale.dense for layer in self._layers)
        budget = replace(self.budget, rest=max(0.0, dense - layers))
        way = self._way(budget)
        return confirmed(self._whole, lambda b: self._ranks(way, b), budget, layers)

    def _way(self, budget: Budget) -> Way:
        request, rule = self.request, self.request.allocation.rule
        if request.sensitivity is not None:
            request.sensitivity.check(fingerprint(self.model))
            return Way(request.sensitivity, request.sensitivity)
        if rule == UNIFORM or (rule == AUTO and self.data is None):
            return Way(None, None)
        probe = self.probe
        if rule == AUTO and not probe.hears:
            return Way(None, None)
        found = probe.sensitivity(rule)
        if rule != AUTO:
            return Way(found, found)
        ways = (Way(found, found), Way(None, found))
        tried = [self._ranks(way, budget) for way in ways]
        losses = [
            probe.loss_at(matrix_ranks(draft.row() for draft in ranks.drafts)) for ranks in tried
        ]
        candidates = tuple(
            Candidate(ranks.allotment.rule, loss if math.isfinite(loss) else None)
            for ranks, loss in zip(tried, losses, strict=True)
        )
        return replace(ways[losses.index(min(losses))], candidates=candidates)

    @cached_property
    def probe(self) -> Probe:
        """What looks at the layers."""
        request, names = self.request, [draft.name for draft in self.drafts]
        return Probe(
            self.model, names, self.data, request.loss, request.readout, request.random_state,
            request.progress, self.weighs, moments=self.moments, kept=request.kept,
        )  # fmt: skip

    def _ranks(self, way: Way, budget: Budget) -> Ranks:
        """Of the least predicted loss, or of about the same share for all."""
        choices = allocated(self._layers, way.by, self.request.allocation, budget)
        rule = UNIFORM if way.by is None else way.by.rule
        why_dense = "no rank fits into the share" if way.by is None else "every rank costs more"
        ranks = self._chosen(choices, rule, why_dense, way.predicts)
        return replace(ranks, allotment=replace(ranks.allotment, candidates=way.candidates))

    @cached_property
    def _sample(self) -> Sample:
        """That costs are counted on. Raises ArgumentError where there is none."""
        if self.request.example is not None:
            return Sample(Batch.of(self.request.example), "example")
        if self.data is None:
            raise ArgumentError(
                f"{self.budget.word}= depends on what the layers are called with; give "
                "calibration=, of which the first batch counts, or example=, a batch"
            )
        return Sample(self.data.first, "calibration")

    @cached_property
    def _whole(self) -> Whole:
        return Whole.of(LATENCY, self.model, self.drafts, self._sample)

    def _prices(self) -> list[Scale]:
        word = self.budget.word
        if word in OF_PARAMS:
            return params_of(self.drafts)
        if word == "keep_bytes":
            return bytes_of(self.drafts)
        if word == "keep_flops":
            scales = flops_of(self.model, self.drafts, self._sample)
        else:
            times = [self._whole.times[draft.name] for draft in self.drafts]
            scales = times_of_rungs(self.drafts, times)
        return reached(word, scales, self._sample)

    @cached_property
    def _layers(self) -> list[Layer]:
        layers = []
        for draft, scale in zip(self.drafts, self._prices(), strict=True):
            assert draft.ladder is not None
            layers.append(Layer.of(draft.found.places, draft.ladder, scale))
        return layers

    def _chosen(
        self,
        choices: Sequence[Choice],
        rule: str,
        why_dense: str,
        predicts: Sensitivity | None,
    ) -> Ranks:
        """The drafts at these choices."""
        known = {} if predicts is None else {row.name: row for row in predicts.layers}
        drafts = []
        for draft, layer, choice in zip(self.drafts, self._layers, choices, strict=True):
            if choice is not None:
                drafts.append(replace(draft, method=draft.method_at(choice)))
            elif layer.scale.dense > 0:
                drafts.append(draft.dense(why_dense))
            else:
                drafts.append(draft.dense("the batch that costs are counted on does not reach it"))
        pairs = list(zip(self._layers, choices, strict=True))
        allotment = Allotment(rule)
        cost = float(sum(layer.cost(choice) for layer, choice in pairs))
        if self.budget.word not in OF_PARAMS:
            dense_cost = float(sum(layer.scale.dense for layer in self._layers))
            allotment = replace(allotment, dense_cost=dense_cost, cost=cost)
        if predicts is not None:
            lost = (
                known[layer.name].loss_at(choice.params)
                for layer, choice in pairs
                if choice is not None and layer.name in known
            )
            allotment = replace(allotment, unit=predicts.unit, predicted_loss=sum(lost))
        return Ranks(drafts, allotment, cost)
