"""Ranks where they matter: one budget shared out over layers by what each would lose."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from tensorlrf.compression.plan._knapsack import Options, knapsack
from tensorlrf.compression.plan.allocation import Allocation
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
    """

    places: tuple[str, ...]
    ladder: Ladder

    @property
    def name(self) -> str:
        return self.places[0]


Cost = Callable[[Layer, Choice], float]
"""What a choice costs of the budget."""


def params_of(layer: Layer, choice: Choice) -> float:
    """The cost that `keep_params` counts."""
    return layer.ladder.dense if choice is None else choice.params


def allocated(
    layers: Sequence[Layer],
    sensitivity: Sensitivity,
    allocation: Allocation,
    share: float,
    cost: Cost = params_of,
) -> list[Choice]:
    """A choice for each layer: the least predicted loss at `share` of what they cost when dense.

    Layers that the sensitivity does not know get the highest rung within the share.
    Raises ArgumentError where the cheapest choices cost more than that, and for a glob of the
    allocation that matches no layer.
    """
    _check_globs(layers, allocation)
    known = {row.name: row for row in sensitivity.layers}
    sets = [_choices(layer, known.get(layer.name), allocation, share) for layer in layers]
    groups = _together(layers, sets, allocation)
    items = []
    for group in groups:
        costs = [sum(cost(layers[k], c) for k, c in row.items()) for row in group]
        losses = [
            sum(_loss(layers[k], known.get(layers[k].name), c, allocation) for k, c in row.items())
            for row in group
        ]
        items.append(Options.of(costs, losses))
    whole = sum(cost(layer, None) for layer in layers)
    budget = share * whole * (1 + 1e-12)
    least = sum(float(item.cost.min()) for item in items)
    if least > budget:
        raise ArgumentError(
            f"a share of {share:g} is below {math.ceil(least / whole * 1e4) / 1e4:g}, the least "
            f"that these layers can do with (least_share={allocation.least_share:g})"
        )
    chosen: dict[int, Choice] = {}
    for group, at in zip(groups, knapsack(items, budget), strict=True):
        chosen |= group[at]
    return [chosen[k] for k in range(len(layers))]


def _choices(
    layer: Layer, known: LayerSensitivity | None, allocation: Allocation, share: float
) -> list[Choice]:
    rungs = [r for r in layer.ladder.rungs if _is_multiple(r.rank, allocation.multiple)]
    rungs = [r for r in rungs if r.params >= allocation.least_share * layer.ladder.dense]
    if known is None:
        rungs = [r for r in rungs if r.params <= share * layer.ladder.dense][-1:]
    return [*rungs, None] if known is not None or not rungs else list(rungs)


def _is_multiple(rank: LayerRank, multiple: int) -> bool:
    ranks = rank if isinstance(rank, tuple) else (rank,)
    return all(r < multiple or r % multiple == 0 for r in ranks)


def _loss(
    layer: Layer, known: LayerSensitivity | None, choice: Choice, allocation: Allocation
) -> float:
    if known is None or choice is None:
        return 0.0
    weight = math.prod(
        factor
        for glob, factor in allocation.weights.items()
        if any(fnmatchcase(name, glob) for name in layer.places)
    )
    return weight * known.loss_at(choice.params)


def _together(
    layers: Sequence[Layer], sets: Sequence[list[Choice]], allocation: Allocation
) -> list[list[dict[int, Choice]]]:
    """Of layers that have their rank in common, or of a single one, the joint choices, each as a
    mapping from the number of a layer."""
    members: dict[tuple[str, str], list[int]] = defaultdict(list)
    for k, layer in enumerate(layers):
        glob = next((g for g in allocation.together if fnmatchcase(layer.name, g)), None)
        key = ("", layer.name) if glob is None else (glob, layer.name.rpartition(".")[0])
        members[key].append(k)
    groups = []
    for numbers in members.values():
        by_rank = [{None if c is None else c.rank: c for c in sets[k]} for k in numbers]
        ranks = [rank for rank in by_rank[0] if all(rank in one for one in by_rank)]
        if not ranks:
            names = ", ".join(layers[k].name for k in numbers)
            raise ArgumentError(f"together: {names} have no rank in common")
        groups.append(
            [{k: one[rank] for k, one in zip(numbers, by_rank, strict=True)} for rank in ranks]
        )
    return groups


def _check_globs(layers: Sequence[Layer], allocation: Allocation) -> None:
    names = [name for layer in layers for name in layer.places]
    for argument, globs in (("together", allocation.together), ("weights", allocation.weights)):
        for glob in globs:
            if not any(fnmatchcase(name, glob) for name in names):
                raise ArgumentError(
                    f"{argument}: the glob {glob!r} matches no layer that is to be factored; there "
                    f"are {', '.join(names)[:300]}"
                )
