"""One budget shared out over layers: uniformly, or by what each would lose."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from tensorlrf.compression.plan._knapsack import Options, knapsack
from tensorlrf.compression.plan._uniform import ROUNDING, Scale, uniform
from tensorlrf.compression.plan.allocation import Allocation
from tensorlrf.compression.plan.budget import Budget
from tensorlrf.compression.plan.sensitivity import LayerSensitivity, Sensitivity
from tensorlrf.decomposition.ladder import Ladder, LayerRank, Rung
from tensorlrf.errors import ArgumentError

Choice = Rung | None
"""A rung of a layer's ladder, or None: it stays dense."""


@dataclass(frozen=True)
class Layer:
    """A layer that takes part.

    places  its qualified names, the first one first
    ladder  what it can become beside staying as it is
    scale   what that costs: each rung more than the one before, and less than staying
    """

    places: tuple[str, ...]
    ladder: Ladder
    scale: Scale

    @classmethod
    def of(cls, places: tuple[str, ...], ladder: Ladder, scale: Scale) -> Layer:
        """With the rungs that neither a later one nor staying undercuts."""
        kept: list[tuple[Rung, float]] = []
        for rung, cost in zip(reversed(ladder.rungs), reversed(scale.rungs), strict=True):
            if cost < (kept[-1][1] if kept else scale.dense):
                kept.append((rung, cost))
        rungs, costs = tuple(r for r, _ in reversed(kept)), tuple(c for _, c in reversed(kept))
        return cls(places, replace(ladder, rungs=rungs), Scale(scale.dense, costs))

    @property
    def name(self) -> str:
        return self.places[0]

    def cost(self, choice: Choice) -> float:
        """Of the budget."""
        if choice is None:
            return self.scale.dense
        return self.scale.rungs[self.ladder.rungs.index(choice)]

    def choices(self, allocation: Allocation) -> dict[LayerRank, tuple[Rung, float]]:
        """Rank -> rung and cost of those that the allocation allows, beside staying."""
        least = allocation.least_share * self.ladder.dense
        return {
            rung.rank: (rung, cost)
            for rung, cost in zip(self.ladder.rungs, self.scale.rungs, strict=True)
            if rung.params >= least and _is_multiple(rung.rank, allocation.multiple)
        }

    def weight(self, allocation: Allocation) -> float:
        """Of its loss."""
        return math.prod(
            factor
            for glob, factor in allocation.weights.items()
            if any(fnmatchcase(name, glob) for name in self.places)
        )


@dataclass(frozen=True)
class _Joint:
    """Layers of one rank, or a single one: what they can become together, cheapest first, to stay
    the last; each option maps the number of a layer to its choice."""

    options: list[dict[int, Choice]]
    costs: list[float]

    def highest(self, share: float) -> _Joint:
        """The highest option within a share, or to stay where there is none."""
        within = [k for k, cost in enumerate(self.costs[:-1]) if cost <= share * self.costs[-1]]
        at = within[-1] if within else -1
        return _Joint([self.options[at]], [self.costs[at]])


def allocated(
    layers: Sequence[Layer],
    sensitivity: Sensitivity | None,
    allocation: Allocation,
    budget: Budget,
) -> list[Choice]:
    """A choice for each layer within the budget: the least predicted loss, or without a sensitivity
    about the same share for all.

    Layers that the sensitivity does not know get the highest rung within the share.
    Raises ArgumentError where the cheapest choices cost more than that, and for a glob of the
    allocation that matches no layer.
    """
    _check_globs(layers, allocation)
    joints = _joints(layers, allocation)
    whole = sum(layer.scale.dense for layer in layers)
    _check_least(joints, whole, allocation, budget)
    room = budget.room(whole)
    share = room / whole if whole else 1.0
    known = {} if sensitivity is None else {row.name: row for row in sensitivity.layers}
    if sensitivity is not None:
        names = [[layers[k].name for k in joint.options[-1]] for joint in joints]
        joints = [
            joint if any(name in known for name in own) else joint.highest(share)
            for joint, own in zip(joints, names, strict=True)
        ]
        _check_least(joints, whole, allocation, budget)
    if sensitivity is None:
        scales = [Scale(joint.costs[-1], tuple(joint.costs[:-1])) for joint in joints]
        rungs = uniform(scales, share)
        picked = [-1 if rung is None else rung for rung in rungs]
    else:
        items = [
            Options.of(joint.costs, _losses(layers, known, joint, allocation)) for joint in joints
        ]
        picked = knapsack(items, room * ROUNDING)
    chosen: dict[int, Choice] = {}
    for joint, at in zip(joints, picked, strict=True):
        chosen |= joint.options[at]
    return [chosen[k] for k in range(len(layers))]


def _joints(layers: Sequence[Layer], allocation: Allocation) -> list[_Joint]:
    members: dict[tuple[str, str], list[int]] = defaultdict(list)
    for k, layer in enumerate(layers):
        glob = next((g for g in allocation.together if fnmatchcase(layer.name, g)), None)
        key = ("", layer.name) if glob is None else (glob, layer.name.rpartition(".")[0])
        members[key].append(k)
    return [_joint(layers, numbers, allocation) for numbers in members.values()]


def _joint(layers: Sequence[Layer], numbers: Sequence[int], allocation: Allocation) -> _Joint:
    by_rank = [layers[k].choices(allocation) for k in numbers]
    ranks = [rank for rank in by_rank[0] if all(rank in own for own in by_rank)]
    if not ranks and all(by_rank):
        names = ", ".join(layers[k].name for k in numbers)
        raise ArgumentError(f"together: {names} have no rank in common; take one of them out")
    options: list[dict[int, Choice]] = [
        {k: own[rank][0] for k, own in zip(numbers, by_rank, strict=True)} for rank in ranks
    ]
    costs = [sum(own[rank][1] for own in by_rank) for rank in ranks]
    options.append(dict.fromkeys(numbers))
    costs.append(sum(layers[k].scale.dense for k in numbers))
    return _Joint(options, costs)


def _is_multiple(rank: LayerRank, multiple: int) -> bool:
    ranks = rank if isinstance(rank, tuple) else (rank,)
    return all(r < multiple or r % multiple == 0 for r in ranks)


def _losses(
    layers: Sequence[Layer],
    known: Mapping[str, LayerSensitivity],
    joint: _Joint,
    allocation: Allocation,
) -> list[float]:
    """What the layers of each option are predicted to lose, weighted."""
    losses = [0.0] * len(joint.options)
    for k in joint.options[-1]:
        row, weight = known.get(layers[k].name), layers[k].weight(allocation)
        for at, option in enumerate(joint.options):
            choice = option[k]
            if row is not None and choice is not None:
                losses[at] += weight * row.loss_at(choice.params)
    return losses


def _check_least(
    joints: Sequence[_Joint], whole: float, allocation: Allocation, budget: Budget
) -> None:
    least, room = sum(min(joint.costs) for joint in joints), budget.room(whole)
    if least > room * ROUNDING:
        of = f" with least_share={allocation.least_share:g}" if allocation.least_share else ""
        need = budget.amount(least).removesuffix(f" {budget.unit}")
        raise ArgumentError(
            f"{budget.word}={budget.value:g} leaves {budget.amount(max(0.0, room))}, but the "
            f"eligible layers need {need} at the smallest ranks there are{of}; {budget.word}="
            f"{budget.least(whole, least)} is the least they can do with"
        )


def _check_globs(layers: Sequence[Layer], allocation: Allocation) -> None:
    names = [name for layer in layers for name in layer.places]
    for argument, globs in (("together", allocation.together), ("weights", allocation.weights)):
        for glob in globs:
            if not any(fnmatchcase(name, glob) for name in names):
                raise ArgumentError(
                    f"{argument}: the glob {glob!r} matches no layer that is to be factored; there "
                    f"are {', '.join(names)[:300]}"
                )
