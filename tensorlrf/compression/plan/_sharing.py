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
from tensorlrf.compression.plan._allocated import Choice, Layer, allocated
from tensorlrf.compression.plan._drafts import Draft
from tensorlrf.compression.plan._prices import Sample, prices_of
from tensorlrf.compression.plan._request import Request
from tensorlrf.compression.plan.allocation import AUTO, UNIFORM, Allotment, Candidate
from tensorlrf.compression.plan.budget import Budget
from tensorlrf.compression.plan.sensitivity import Sensitivity

Shared = tuple[list[Draft], Allotment]
"""Drafts with ranks, and how these came about."""


@dataclass(frozen=True)
class Sharing:
    """A budget that is to be shared out over drafts, none of which has one of its own.

    weighs  whether what errors of outputs cost is gathered on the way
    """

    model: nn.Module
    drafts: Sequence[Draft]
    budget: Budget
    request: Request
    data: Calibration | None
    weighs: bool = False

    def shared_out(self) -> Shared:
        """By the allocation's rule; with "auto" with uniform ranks, where the model then loses less
        on inputs held out."""
        request, rule = self.request, self.request.allocation.rule
        if request.sensitivity is not None:
            request.sensitivity.check(fingerprint(self.model))
            return self._by(request.sensitivity)
        if rule == UNIFORM or (rule == AUTO and self.data is None):
            return self._uniform(None)
        probe = self.probe
        if rule == AUTO and not probe.hears:
            return self._uniform(None)
        found = probe.sensitivity(rule)
        if rule != AUTO:
            return self._by(found)
        tried = (self._by(found), self._uniform(found))
        losses = [probe.loss_at(_matrix_ranks(drafts)) for drafts, _ in tried]
        candidates = tuple(
            Candidate(allotment.rule, loss if math.isfinite(loss) else None)
            for (_, allotment), loss in zip(tried, losses, strict=True)
        )
        drafts, allotment = tried[losses.index(min(losses))]
        return drafts, replace(allotment, candidates=candidates)

    @cached_property
    def probe(self) -> Probe:
        """What looks at the layers."""
        request, names = self.request, [draft.name for draft in self.drafts]
        return Probe(
            self.model, names, self.data, request.loss, request.readout, request.random_state,
            request.progress, self.weighs,
        )  # fmt: skip

    def _by(self, sensitivity: Sensitivity) -> Shared:
        """Of the least predicted loss."""
        choices = allocated(self._layers, sensitivity, self.request.allocation, self.budget)
        return self._chosen(choices, sensitivity.rule, "every rank costs more", sensitivity)

    def _uniform(self, predicts: Sensitivity | None) -> Shared:
        """Of about the same share for all, and what is predicted for them."""
        choices = allocated(self._layers, None, self.request.allocation, self.budget)
        return self._chosen(choices, UNIFORM, "no rank fits into the share", predicts)

    @cached_property
    def _layers(self) -> list[Layer]:
        sample = None
        if self.request.example is not None:
            sample = Sample(Batch.of(self.request.example), "example")
        elif self.data is not None:
            sample = Sample(self.data.batches[0], "calibration")
        prices = prices_of(self.budget.word, self.model, self.drafts, sample)
        layers = []
        for draft, scale in zip(self.drafts, prices, strict=True):
            assert draft.ladder is not None
            layers.append(Layer.of(draft.found.places, draft.ladder, scale))
        return layers

    def _chosen(
        self,
        choices: Sequence[Choice],
        rule: str,
        why_dense: str,
        predicts: Sensitivity | None,
    ) -> Shared:
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
        if self.budget.word != "keep_params":
            allotment = replace(
                allotment,
                dense_cost=float(sum(layer.scale.dense for layer in self._layers)),
                cost=float(sum(layer.cost(choice) for layer, choice in pairs)),
            )
        if predicts is not None:
            lost = (
                known[layer.name].loss_at(choice.params)
                for layer, choice in pairs
                if choice is not None and layer.name in known
            )
            allotment = replace(allotment, unit=predicts.unit, predicted_loss=sum(lost))
        return drafts, allotment


def _matrix_ranks(drafts: Sequence[Draft]) -> dict[str, int]:
    """The ranks of low-rank matrices that have as many parameters, of layers that are factored."""
    ranks = {}
    for draft in drafts:
        row = draft.row()
        if row.method is not None and row.params_after is not None:
            a_rank = row.shape[0] + row.groups * math.prod(row.shape[1:])
            ranks[row.name] = max(1, row.params_after // a_rank)
    return ranks
