"""The choices of all layers together, tried in the whole model: alone, a layer is measured hot."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from tensorlrf.compression._latency import (
    TORCH,
    evaluating,
    fresh,
    generators_kept,
    pick,
    resident_bytes,
)
from tensorlrf.compression._tuning import ALL_DENSE, FASTEST, BucketTiming, WholeTiming
from tensorlrf.compression.calibration._batches import call
from tensorlrf.nn import FactoredLayer
from tensorlrf.ops import PathTable, time_calls

MARGINS = {FASTEST: 0.0, ALL_DENSE: math.inf, "gain > 10%": 0.1, "gain > 30%": 0.3}
"""Name of a choice -> how much faster than dense a layer must be alone to run on its factors."""

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
    seconds: float,
    advance: Callable[[str], None],
) -> WholeTiming:
    """Passes over all examples under each choice, in turn; the fastest is chosen and, among those
    that are as fast within the noise, the one that holds the fewest bytes.

    The layers keep their tables. While this runs they may all hold a rebuilt weight. `advance` is
    told the name of the choice after each pass.
    """

    def run(name: str) -> Callable[[], None]:
        def passes() -> None:
            # Not by the property, which would drop the rebuilt weights in each round.
            for layer, table in choices[name].items():
                layer._path_table = table
            with generators_kept(model):  # so that all passes take the same course
                for k, batch in enumerate(examples):
                    call(model, fresh(batch), k, "example")
            advance(name)

        return passes

    first = next(iter(choices.values()))
    device = next(layer.factors.device for layer in first)
    with _tables_kept(choices), evaluating(model):
        timings = time_calls({name: run(name) for name in choices}, seconds=seconds, device=device)
    return WholeTiming(
        seconds={name: timings.median(name) for name in choices}, chosen=pick(timings, held)
    )


def bytes_held(choice: Timed, objective: str) -> int:
    """Bytes that the weights of the layers take in memory under a choice."""
    total = 0
    for layer, rows in choice.items():
        held = resident_bytes(layer)
        if objective == "latency" and all(one.dense_wins for one in rows):
            total += held[TORCH]
        else:
            total += max(held[one.chosen] for one in rows)
    return total


@contextmanager
def _tables_kept(choices: Mapping[str, Mapping[FactoredLayer, PathTable]]) -> Iterator[None]:
    """The layers have their tables, and no rebuilt weights of others, when this is over."""
    layers = {layer: layer._path_table for tables in choices.values() for layer in tables}
    try:
        yield
    finally:
        for layer, table in layers.items():
            layer.path_table = table
