"""Rules for ranks that stand in the harness alone: SVD-LLM v2's and ASVD's.

Both give each layer a share of its parameters; a plan is made of them as of any ranks.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import tensorlrf
from tensorlrf.compression.losses._published import matrix_type
from tensorlrf.compression.plan.sensitivity import LayerSensitivity

SHARES = tuple(k / 10 for k in range(1, 10))
"""At which ASVD looks at each layer."""


def planned(
    dense: tensorlrf.Plan, kept: Mapping[str, float], layers: Sequence[LayerSensitivity]
) -> tensorlrf.Plan:
    """A plan with these shares of the layers."""
    made = dense
    for row in layers:
        rank = rank_within(row, kept[row.name])
        made = made.edit(row.name, leave=True) if rank is None else made.edit(row.name, rank=rank)
    return made


def rank_within(row: LayerSensitivity, share: float) -> int | None:
    """Down to a multiple of 8; None for a layer that has to stay, as factors of its share would be
    as large as the weight."""
    rank = int(share * row.params / row.params_a_rank * (1 + 1e-12))
    rank = rank // 8 * 8 if rank >= 8 else max(1, rank)
    return rank if share < 1 and rank * row.params_a_rank < row.params else None


def svd_llm_v2(
    layers: Sequence[LayerSensitivity], energy: Mapping[str, float], keep: float
) -> dict[str, float]:
    """What is taken from a layer goes with 1 / log of its truncation loss at the common share,
    among the layers of one type, as all queries are (Wang et al. 2025, section 3.1, algorithm 1).

    layers  with the share of the energy that is lost at each rank
    energy  of each layer's outputs over all calibration inputs, which are summed there
    """
    kinds: dict[str, list[LayerSensitivity]] = defaultdict(list)
    for row in layers:
        kinds[matrix_type(row.name)].append(row)
    kept = {}
    for rows in kinds.values():
        parts = {}
        for row in rows:
            loss = math.sqrt(energy[row.name] * row.loss_at(keep * row.params))
            parts[row.name] = 1 / math.log(max(loss, math.e))  # below e the rule has no meaning
        mean = sum(parts.values()) / len(parts)
        kept |= {name: 1 - (1 - keep) * part / mean for name, part in parts.items()}
    return _within(layers, keep, lambda t: {n: min(1.0, v * t) for n, v in kept.items()})


def asvd(layers: Sequence[LayerSensitivity], keep: float) -> dict[str, float]:
    """The lowest of a few shares at which a layer alone loses no more than all others may, by
    search for that bound (Yuan et al. 2023, section 3.4, whose sensitivity is the perplexity of the
    model with that layer alone cut).

    layers  with measured losses
    """

    def within(bound: float) -> dict[str, float]:
        return {
            row.name: next((s for s in SHARES if row.loss_at(s * row.params) <= bound), 1.0)
            for row in layers
        }

    return _within(layers, keep, lambda t: within(1 / t))


def _within(
    layers: Sequence[LayerSensitivity], keep: float, at: Callable[[float], Mapping[str, float]]
) -> dict[str, float]:
    """The shares at the highest multiplier at which they keep no more than is to be kept."""
    whole = sum(row.params for row in layers)

    def params(row: LayerSensitivity, share: float) -> int:
        rank = rank_within(row, share)
        return row.params if rank is None else rank * row.params_a_rank

    def fits(t: float) -> bool:
        kept = at(t)
        return sum(params(row, kept[row.name]) for row in layers) <= keep * whole

    low, high = 2.0**-60, 2.0**60
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if fits(middle) else (low, middle)
    return dict(at(low))
