"""Published rules for ranks, each told as the loss of which its ranks are the least sum.

All three share a budget out by one multiplier: what a unit of cost buys is the same in every layer.
So each is the knapsack's own condition, for a loss of its own. These are told beside staying dense:
what a layer would lose at its break-even, where factors are as large as the weight, is taken off.

References: Mi, Sun, Zhang & Huang 2025 (D-Rank, equations 1 to 7); Jaiswal et al. 2024 (WeLore,
whose code normalises spectra from their least value to their largest); Lin et al. 2025 (MoDeGPT,
equations 10 and 11).
"""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tensorlrf.compression.calibration._dense_layer import DenseLayer

TEMPERATURE = 0.015
"""How evenly MoDeGPT spreads sparsity over blocks: its epsilon, of which this value and the bound
below are those of an open implementation (github.com/cbacary/MoDeGPT)."""

MOST_SPARSITY = 0.8
"""Of what a layer may lose there, unless the budget asks for more."""

LEAST_SPARSITY = 1e-3
"""What costs nothing there: a softmax gives every layer some sparsity, the smallest rank does
not."""

BEYOND = 1e3
"""What a unit of sparsity costs above the most: more than anything below."""

NUMBER = re.compile(r"(?:^|\.)\d+(?=\.|$)")


@dataclass(frozen=True)
class Sizes:
    """Of a layer's weight and its factors.

    params   of the weight
    a_rank   parameters of the factors for each rank
    full     the full rank
    """

    params: int
    a_rank: int
    full: int

    @classmethod
    def of(cls, site: DenseLayer) -> Sizes:
        """Of a layer of a model."""
        m = site.shape[0] // site.groups
        a_rank = site.shape[0] + site.groups * site.columns
        return cls(math.prod(site.shape), a_rank, min(m, site.columns))

    @property
    def break_even(self) -> float:
        """The rank at which factors are as large as the weight."""
        return self.params / self.a_rank


def effective_rank(energies: Sequence[float]) -> float:
    """exp of the entropy of the spectrum (Roy & Vetterli 2007): 1 of one direction alone, n of n
    equal ones; 0 where there is nothing.

    energies  beyond each rank, from 0 on to the full
    """
    parts = _steps(energies)
    total = sum(parts)
    if total <= 0:
        return 0.0
    return math.exp(-sum(p / total * math.log(p / total) for p in parts if p > 0))


def matrix_type(name: str) -> str:
    """What a layer has in common with those of other blocks: its name without numbers."""
    return NUMBER.sub("", name)


def effective_rank_losses(
    sizes: Mapping[str, Sizes], energies: Mapping[str, Sequence[float]]
) -> dict[str, list[float]]:
    """R / r, with R the effective rank of a layer's outputs, so that r ~ sqrt(R / cost of a rank)
    among the layers of one type, as all queries are; weighted so that one multiplier gives each
    type the share that the whole model keeps.

    D-Rank, without its bases that several layers share and its shift from queries and keys to
    values.
    """
    heights = {name: effective_rank(energies[name]) for name in sizes}
    params: dict[str, float] = defaultdict(float)
    roots: dict[str, float] = defaultdict(float)
    for name, size in sizes.items():
        params[matrix_type(name)] += size.params
        roots[matrix_type(name)] += math.sqrt(heights[name] * size.a_rank)
    losses = {}
    for name, size in sizes.items():
        kind = matrix_type(name)
        # The ranks of loss w R / r spend sqrt(w / multiplier) sum of sqrt(R cost): the share of
        # the type's parameters is the same for all where that is so of w over params squared.
        weight = (params[kind] / roots[kind]) ** 2 if roots[kind] > 0 else 1.0
        height = weight * heights[name]
        known = [height * max(0.0, 1 / r - 1 / size.break_even) for r in range(1, size.full + 1)]
        losses[name] = [2 * height, *known]
    return losses


FLAT = 1e-6
"""By which singular values differ that are alike: they come from differences of sums of squares."""


def spectrum_shape_losses(sizes: Sizes, energies: Sequence[float]) -> list[float]:
    """The singular values beyond r, each from 0 for the least to 1 for the largest and at the cost
    of a rank, so that all layers keep those above one threshold.

    WeLore, whose spectra are those of the weights.
    """
    values = [math.sqrt(step) for step in _steps(energies)]
    low, top = min(values, default=0.0), max(values, default=0.0)
    losses = [0.0]
    for r in reversed(range(sizes.full)):
        # Beyond the break-even there is nothing to be bought.
        bought = sizes.a_rank * min(1.0, max(0.0, sizes.break_even - r))
        flat = top - low <= FLAT * top
        height = float(top > 0) if flat else (values[r] - low) / (top - low)
        losses.append(losses[-1] + bought * height)
    return losses[::-1]


def block_influence_losses(sizes: Sizes, above: float) -> list[float]:
    """Influence times sparsity, less epsilon times the entropy of sparsity, for every parameter, so
    that sparsity ~ softmax(-influence / epsilon).

    MoDeGPT's global sparsity allocation.

    above  the influence of the layer's block, above the least one of any block
    """
    free = LEAST_SPARSITY * math.exp(-above / TEMPERATURE)
    losses = []
    for r in range(sizes.full + 1):
        sparsity = 1 - r / sizes.break_even
        if sparsity <= free:
            losses.append(0.0)
            continue
        entropy = sparsity * (1 - math.log(sparsity / LEAST_SPARSITY)) - free
        loss = max(0.0, above * sparsity - TEMPERATURE * entropy)
        loss += BEYOND * max(0.0, sparsity - MOST_SPARSITY)
        losses.append(sizes.params * loss)
    return losses


def _steps(energies: Sequence[float]) -> list[float]:
    """The energy of each direction."""
    return [max(0.0, a - b) for a, b in itertools.pairwise(energies)]
