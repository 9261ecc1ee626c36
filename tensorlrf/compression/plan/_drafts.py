"""Modules on their way into a plan: which are to be factored, how, and with what budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import is_lazy

from tensorlrf.compression._survey import Surveyed, kind_of, own_numbers
from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.methods import Given, as_method, at_rung
from tensorlrf.compression.plan._plan import LayerPlan
from tensorlrf.compression.plan.budget import ON_INPUTS, TOTAL, Budget
from tensorlrf.decomposition.configs import Method
from tensorlrf.decomposition.ladder import Ladder, Rung
from tensorlrf.errors import ArgumentError, TensorlrfError


@dataclass(frozen=True)
class Draft:
    """A module on its way into the plan; `layer` where it can be factored."""

    found: Surveyed
    layer: DenseLayer | None
    method: Method | None
    ladder: Ladder | None
    reason: str

    @property
    def name(self) -> str:
        return self.found.name

    @property
    def eligible(self) -> bool:
        return self.ladder is not None

    @property
    def open(self) -> bool:
        """Whether it waits for its part of the budget that layers share."""
        return self.method is not None and not self.method.budgeted

    def left(self, reason: str) -> Draft:
        """It is none of the layers that a budget is about."""
        return replace(self, method=None, ladder=None, reason=reason)

    def dense(self, reason: str) -> Draft:
        """It stays, and counts."""
        return replace(self, method=None, reason=reason)

    def method_at(self, rung: Rung) -> Method:
        """Its method at a rung of its ladder."""
        assert self.method is not None
        assert self.ladder is not None
        if self.method.by_share:
            return self.method.with_budget(rank=rung.params / self.ladder.dense)
        return at_rung(self.method, rung)

    def row(self) -> LayerPlan:
        """Of the plan."""
        found, layer = self.found, self.layer
        params = (
            own_numbers(found.module, found.table)[0] if layer is None else math.prod(layer.shape)
        )
        return LayerPlan(
            found.name,
            found.places,
            kind_of(found.module),
            () if layer is None else layer.shape,
            1 if layer is None else layer.groups,
            self.method,
            params,
            self.eligible,
            self.reason,
        )


def chooser(method: Given) -> Mapping[str, Method | None]:
    """Glob -> method. One method for all is that of "*"."""
    if not isinstance(method, Mapping):
        return {"*": as_method(method)}
    if not method:
        raise ArgumentError("method={} is empty; map globs of layer names to methods")
    return {
        glob: None if value is None else as_method(value, f"method[{glob!r}]")
        for glob, value in method.items()
    }


def drafts_of(found: Sequence[Surveyed], methods: Mapping[str, Method | None]) -> list[Draft]:
    """A draft of each module, the method its own where that has a budget.

    Raises ArgumentError for a glob that matches nothing, and RankError for a rank that cannot be.
    """
    drafts = [_draft(one, methods) for one in found]
    names = [name for one in found for name in one.places]
    for glob in methods:
        if glob != "*" and not any(fnmatchcase(name, glob) for name in names):
            raise ArgumentError(
                f"method: the glob {glob!r} matches no layer; there are {', '.join(names)[:300]}"
            )
    return drafts


def _draft(found: Surveyed, choose: Mapping[str, Method | None]) -> Draft:
    if found.reason and not found.skipped:
        return Draft(found, None, None, None, found.reason)
    layer = DenseLayer.of(found.module)
    if found.reason:
        return Draft(found, layer, None, None, found.reason)
    glob = next((g for g in choose for n in found.places if fnmatchcase(n, g)), None)
    if glob is None:
        return Draft(found, layer, None, None, "no glob of method= matches it")
    method = choose[glob]
    if method is None:
        return Draft(found, layer, None, None, f"left by method= for {glob!r}")
    method = method.for_shape(layer.shape)
    reason = layer.why_not(method)
    if reason:
        return Draft(found, layer, None, None, reason)
    ladder = method.ladder(layer.shape, layer.groups)
    if not ladder.rungs and not isinstance(method.rank, (int, tuple)):
        return Draft(found, layer, None, None, "no factored form is smaller")
    return Draft(found, layer, method, ladder, "")


def lookups_left(drafts: Sequence[Draft], budget: Budget | None, objective: str) -> list[Draft]:
    """Those without embeddings where arithmetic or time is shared out: a lookup has none."""
    word = "" if budget is None else budget.word
    word = word if word in ON_INPUTS else "objective" if objective == "latency" else ""
    reason = f"a lookup computes nothing, of which {word}= could save some; give it a rank"
    return [
        draft.left(reason) if word and draft.open and draft.found.is_table else draft
        for draft in drafts
    ]


def of_the_whole(budget: Budget, model: nn.Module, drafts: Sequence[Draft]) -> Budget:
    """The budget, where it is one of all parameters, with what there is beside the layers that
    share it. Layers with a budget of their own have what that says where it is known."""
    if budget.word != TOTAL:
        return budget
    rows = {draft.name: draft.row() for draft in drafts}
    total = sum(p.numel() for p in model.parameters() if not is_lazy(p))
    shared = sum(rows[draft.name].params for draft in drafts if draft.open)
    gone = 0
    for draft in drafts:
        row = rows[draft.name]
        if not draft.open and row.factored and row.params_after is not None:
            gone += row.params - row.params_after
    return replace(budget, rest=total - shared - gone, gone=gone)


def check_budget(drafts: Sequence[Draft], budget: Budget | None) -> None:
    """Raise ArgumentError unless every layer that is to be factored has one budget."""
    eligible = [d for d in drafts if d.method is not None]
    if not eligible:
        reasons = "; ".join(f"{d.name}: {d.reason}" for d in drafts[:20])
        more = f"; and {len(drafts) - 20} more" if len(drafts) > 20 else ""
        raise ArgumentError(
            "model has no eligible layer, which is a Linear or a convolution that becomes smaller "
            f"as factors ({reasons or 'it has no parameters'}{more})"
        )
    open_ = [d.name for d in eligible if d.open]
    if budget is None and open_:
        raise ArgumentError(
            f"there is no budget for {_some(open_)}: give keep_params=, the share of the weights "
            "to keep, or error=, or a rank to every method"
        )
    if budget is not None and not open_:
        raise ArgumentError(
            f"{budget.word}= and the methods' own ranks or errors are two budgets: every layer has "
            f"one of its own, so leave {budget.word}= out"
        )


def own_rank(draft: Draft) -> Draft:
    """A layer's own share becomes a rank, and its own rank is checked."""
    method, layer = draft.method, draft.layer
    if method is None or layer is None or method.rank is None:
        return draft
    if method.by_share and isinstance(method.rank, (float, str)):
        return draft
    try:
        if isinstance(method.rank, float):
            rung = method.ladder(layer.shape, layer.groups).within(method.rank)
            if rung is None:
                return draft.dense(f"no rank fits into its share, {method.rank:g}")
            return replace(draft, method=at_rung(method, rung))
        method.planned_params(method.rank, layer.shape, layer.groups)  # type: ignore[arg-type]
    except TensorlrfError as error:
        raise type(error)(f"method of {draft.name}: {error}") from None
    return draft


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
