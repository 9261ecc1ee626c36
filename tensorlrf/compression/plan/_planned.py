"""From what a plan is asked for to the plan: ranks of layers, and how they came about."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from tensorlrf.compression._survey import Surveyed, check_values, survey, without_skipped
from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration._trace import READ, record
from tensorlrf.compression.checkpoint._architecture import fingerprint
from tensorlrf.compression.losses._probe import Probe
from tensorlrf.compression.moments._moments import Moments
from tensorlrf.compression.plan._drafts import (
    check_budget,
    drafts_of,
    lookups_left,
    of_the_whole,
    own_rank,
)
from tensorlrf.compression.plan._plan import Plan
from tensorlrf.compression.plan._request import Request
from tensorlrf.compression.plan._sharing import Sharing
from tensorlrf.compression.plan.allocation import Allotment
from tensorlrf.compression.plan.budget import BUDGETS
from tensorlrf.compression.plan.times._worthwhile import without_slow
from tensorlrf.factors.autocast import without_autocast


def planned(
    model: nn.Module,
    request: Request,
    data: Calibration | None,
    *,
    weighs: bool = False,
    found: list[Surveyed] | None = None,
    moments: Moments | None = None,
) -> tuple[Plan, list[Surveyed], Probe | None]:
    """`plan`, the survey of the model that it was made from, where none is given, and what looked
    at the layers, where that was to be: with `weighs` it knows what errors of their outputs cost,
    too."""
    found = survey(model) if found is None else found
    wanted = without_skipped(found, model, request.skip, request.include)
    if data is not None:
        with torch.inference_mode(False), without_autocast():
            wanted = without_read(wanted, model, data)
    budget = request.budget
    drafts = lookups_left(drafts_of(wanted, request.methods), budget, request.objective)
    check_budget(drafts, budget)
    open_ = [k for k, draft in enumerate(drafts) if draft.open]
    drafts = [own_rank(draft) for draft in drafts]
    allotment, probe = Allotment(), None
    if budget is not None and budget.shared:
        with torch.inference_mode(False), without_autocast():
            budget = of_the_whole(budget, model, drafts)
            own = [drafts[k] for k in open_]
            sharing = Sharing(model, own, budget, request, data, weighs, moments)
            shared = sharing.shared_out()
            probe = sharing.probe
        allotment = shared.allotment
        for k, draft in zip(open_, shared.drafts, strict=True):
            drafts[k] = draft
    elif budget is not None:
        for k in open_:
            method = drafts[k].method
            assert method is not None
            drafts[k] = replace(drafts[k], method=method.with_budget(error=budget.value))
    if request.objective == "latency":
        with torch.inference_mode(False), without_autocast():
            drafts, allotment = without_slow(model, drafts, request.example, allotment)
    for draft in drafts:
        if draft.method is not None:
            weight = DenseLayer.of(draft.found.module).weight
            if not weight.is_meta:
                check_values(draft.name, weight)
    given = {word: None if budget is None else budget.kept_as(word) for word in BUDGETS}
    rows = tuple(draft.row() for draft in drafts)
    made = Plan(fingerprint(model), layers=rows, allotment=allotment, folded=None, **given)
    return made, found, probe


def without_read(found: list[Surveyed], model: nn.Module, data: Calibration) -> list[Surveyed]:
    """With those left whose weights are read in the first batch by a module that does not call
    them, as a state-space layer does: before the budget is shared out, which is of the others."""
    names = [one.name for one in found if one.eligible]
    readers = record(model, names, data.first).readers if names else {}
    reasons = {name: READ.format(reader) for name, reader in readers.items()}
    return [replace(one, reason=reasons.get(one.name, one.reason)) for one in found]
