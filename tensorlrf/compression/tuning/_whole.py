"""The choices of all layers together, tried in the whole model: alone, a layer is measured hot."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn

from tensorlrf.compression._latency import (
    TORCH,
    pick,
    resident_bytes,
    timed_passes,
)
from tensorlrf.compression.tuning._tuning import ALL_DENSE, FASTEST, BucketTiming, WholeTiming
from tensorlrf.nn import FactoredLayer
from tensorlrf.ops import PathTable, time_calls

MARGINS = {FASTEST: 0.0, ALL_DENSE: math.inf, "gain > 10%": 0.1, "gain > 30%": 0.3}
"""Name of a choice -> how much faster than dense a layer must be alone to run on its factors."""

CONFIRMED = 1.02
"""Most that the time of a pass may be over that of one all dense, by the median of the pairs."""

Timed = Mapping[FactoredLayer, Sequence[BucketTiming]]


def choices_of(timed: Timed) -> dict[str, dict[FactoredLayer, list[BucketTiming]]]:
    """Name -> timings of the layers, each with what is chosen there; each choice once."""
    choices: dict[str, dict[FactoredLayer, list[BucketTiming]]] = {}
    for name, margin in MARGINS.items():
        choice = {layer: [demoted(one, margin) for one in rows] for layer, rows in timed.items()}
        if choice not in choices.values():
            choices[name] = choice
    return choices


def demoted(one: BucketTiming, margin: float) -> BucketTiming:
    """With the path "dense", where it was tried, unless the chosen one is faster than dense by more
    than `margin`."""
    if "dense" not in one.seconds:
        return one
    gain = min(one.dense_seconds, one.seconds["dense"]) / one.chosen_seconds - 1
    if margin == 0 or one.chosen == "dense" or gain > margin:
        return one
    return replace(one, chosen="dense", dense_wins=True)


def time_whole(
    model: nn.Module,
    examples: Sequence[Any],
    choices: Mapping[str, Mapping[FactoredLayer, PathTable]],
    held: Mapping[str, int],
    frozen: Mapping[FactoredLayer, torch.memory_format],
    seconds: float,
    advance: Callable[[str], None],
) -> WholeTiming:
    """Passes over all examples under each choice, in turn; the fastest is chosen and, among those
    that are as fast within the noise, the one that holds the fewest bytes. It is confirmed by pairs
    of passes more, with it and all dense; where it is slower there, all dense is kept.

    `model` is a replica, and `choices` are for its layers: they are left with one or another table,
    and those in `frozen` with a dense weight of the given layout. `advance` is told the name of the
    choice after each pass.
    """
    passes = timed_passes(model, examples)
    run = {name: partial(_run, passes, name, choices[name], advance) for name in choices}
    first = next(iter(choices.values()))
    device = next(layer.factors.device for layer in first)
    for layer, layout in frozen.items():
        layer.freeze(memory_format=layout)
    timings = time_calls(run, seconds=seconds, device=device)
    chosen, pairs = pick(timings, held), None
    if chosen != ALL_DENSE:
        # What was picked out of several for its times looks faster than it is.
        both = {name: run[name] for name in (chosen, ALL_DENSE)}
        again = time_calls(both, seconds=seconds / 2, device=device).samples
        pairs = median(a / b for a, b in zip(again[chosen], again[ALL_DENSE], strict=True))
        chosen = chosen if pairs <= CONFIRMED else ALL_DENSE
    return WholeTiming({name: timings.median(name) for name in choices}, chosen, pairs)


def _run(
    passes: Callable[[], None],
    name: str,
    tables: Mapping[FactoredLayer, PathTable],
    advance: Callable[[str], None],
) -> None:
    """Passes with these tables."""
    for layer, table in tables.items():
        layer.path_table = table
    passes()
    advance(name)


def bytes_held(choice: Timed, objective: str, freezable: Container[FactoredLayer]) -> int:
    """Bytes that the weights of the layers take in memory under a choice."""
    total = 0
    for layer, rows in choice.items():
        held = resident_bytes(layer, freeze=layer in freezable)
        if objective == "latency" and all(one.dense_wins for one in rows):
            total += held[TORCH]
        else:
            total += max(held[one.chosen] for one in rows)
    return total


def chosen_for(layer: FactoredLayer) -> dict[str, Any]:
    """What a choice changes in a layer, as it is now."""
    own = vars(layer)
    return {name: own[name] for name in ("_path_table", "_own_table", "_frozen")}
