"""Which layers would not get faster: they are found before anything is factored.

Times do not depend on values, so factors of the planned rank with any values tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from tensorlrf.compression._latency import faster
from tensorlrf.compression.calibration._dense_layer import dense_layer_at
from tensorlrf.compression.plan._stand_ins import blank_inputs, factored_layer, filled
from tensorlrf.decomposition.configs import Method, Structured
from tensorlrf.errors import ArgumentError
from tensorlrf.nn.copies import replica

NOISE = 0.05
"""A gain below this is none."""


def without_slow(model: nn.Module, methods: Mapping[str, Method], example: Any) -> dict[str, str]:
    """Layers that are no faster on factors than dense, with the reason; timed on the inputs that
    the example brings them. Layers that it does not reach are not judged."""
    if example is None:
        raise ArgumentError("objective='latency' needs example=, a batch to time the layers on")
    for name, method in methods.items():
        decided = isinstance(method.rank, float) and not isinstance(method, Structured)
        if method.error is not None or decided:
            raise ArgumentError(
                f"objective='latency' times layers at their rank, but that of {name} is decided by "
                "the fit; give keep_params= with one method, or ranks"
            )
    working = replica(model)
    names_of = {dense_layer_at(working, name).module: name for name in methods}
    inputs = blank_inputs(working, names_of, example, "example")
    slow = {}
    for name, method in methods.items():
        if name not in inputs:
            continue
        layer = dense_layer_at(working, name)
        x = filled(inputs[name][0], layer.device)
        dense, best = faster(layer.module, factored_layer(layer, method), x)
        if best > dense * (1 - NOISE):
            slow[name] = (
                f"no faster on factors: {best * 1e3:.3g} ms against {dense * 1e3:.3g} ms dense on "
                "the example"
            )
    return slow
