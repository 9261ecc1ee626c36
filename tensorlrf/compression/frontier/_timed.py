"""How long the models of a frontier take: as the times of layers promise, and whole, in turn."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import nn

from tensorlrf.compression.frontier._point import DENSE, FACTORS, FrontierPoint
from tensorlrf.compression.frontier._prospect import Prospect
from tensorlrf.compression.frontier._quantised import Quantiser
from tensorlrf.compression.plan._plan import Plan
from tensorlrf.compression.plan.times._seconds import Sample
from tensorlrf.factors.autocast import without_autocast


def timed(
    points: Sequence[FrontierPoint],
    plans: Sequence[Plan],
    asked: Collection[int],
    prospect: Prospect,
    quantisers: Sequence[Quantiser],
    sample: Sample,
) -> list[FrontierPoint]:
    """The points with their latency: of the given model, of the plans of these numbers and of
    rounded models that run on integers as measured; of every plan as it is promised.

    Raises ArgumentError for a sample that the model cannot take.
    """
    whole = prospect.whole(sample)
    keys = _keys(points)
    models: dict[str, nn.Module] = {}
    with torch.inference_mode(False), without_autocast():
        for k in asked:
            models[f"{FACTORS} {k}"] = whole.stand_in(plans[k].factored)
        models |= {q.word: prospect.running(q) for q in quantisers if q.runs}
        times = whole.in_turn(models)
    seconds = {name: times.median(name) for name in times.samples}
    promised = {
        f"{FACTORS} {k}": whole.promised(plan.factored, seconds[DENSE])
        for k, plan in enumerate(plans)
    }
    return [
        replace(point, latency=seconds.get(key), predicted_latency=promised.get(key))
        for key, point in zip(keys, points, strict=True)
    ]


def _keys(points: Sequence[FrontierPoint]) -> list[str]:
    """A name for each, in their order."""
    plans = iter(range(len(points)))
    return [f"{FACTORS} {next(plans)}" if p.kind == FACTORS else p.kind for p in points]
