"""A budget of time, kept by the whole model: what layers promise alone is tried in it.

What a trial takes longer than it was to, or less long, is laid to the layers in proportion, and
ranks are chosen anew for what that leaves them, a few times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tensorlrf.compression.plan._drafts import Draft
from tensorlrf.compression.plan.allocation import Allotment
from tensorlrf.compression.plan.budget import Budget
from tensorlrf.compression.plan.times._whole import Whole
from tensorlrf.errors import ArgumentError

TRIALS = 4
"""Of ranks in the whole model, at the most."""

CLOSE = 0.03
"""A trial that takes less than was asked for by this part of the given model's time, or by less, is
near enough."""


@dataclass(frozen=True)
class Ranks:
    """Drafts with ranks, how these came about, and what the layers cost together by the budget."""

    drafts: Sequence[Draft]
    allotment: Allotment
    cost: float


@dataclass(frozen=True)
class _Trial:
    """Ranks in the whole model.

    ratio  of its time to the given model's, the median over pairs of passes
    """

    ranks: Ranks
    ratio: float
    dense: float


def confirmed(
    whole: Whole, choose: Callable[[Budget], Ranks], budget: Budget, layers: float
) -> Ranks:
    """The ranks of the highest cost whose time is within the budget, and where there are none those
    of the least time; with both times in the allotment.

    choose  ranks by a budget
    budget  of the whole model; its rest is what lies beside the layers
    layers  seconds of these when dense
    """
    trials: list[_Trial] = []
    beside = budget.rest
    while len(trials) < TRIALS:
        try:
            ranks = choose(budget)
        except ArgumentError:
            if not trials:
                raise
            break  # the smallest ranks would not do
        if any(ranks.cost == one.ranks.cost for one in trials):
            break
        trial = _tried(whole, ranks)
        trials.append(trial)
        if budget.value - CLOSE <= trial.ratio <= budget.value:
            break
        taken = trial.ratio * (layers + beside) - beside
        if ranks.cost >= layers or taken <= 0:
            break
        wanted = budget.value * (layers + beside) - beside
        budget = replace(budget, left=min(layers, ranks.cost * wanted / taken))
    within = [one for one in trials if one.ratio <= budget.value]
    best = max(within, key=lambda one: one.ranks.cost) if within else _least(trials)
    promised = best.dense * (best.ranks.cost + beside) / (layers + beside)
    return replace(
        best.ranks,
        allotment=replace(
            best.ranks.allotment,
            dense_cost=best.dense,
            cost=best.ratio * best.dense,
            promised_cost=promised,
            corrections=trials.index(best),
        ),
    )


def _least(trials: Sequence[_Trial]) -> _Trial:
    return min(trials, key=lambda one: one.ratio)


def _tried(whole: Whole, ranks: Ranks) -> _Trial:
    rows = [draft.row() for draft in ranks.drafts if draft.method is not None]
    ratio, dense = whole.ratio(rows)
    return _Trial(ranks, ratio, dense)
