"""Which layers would not get faster: they are found before anything is factored.

Times do not depend on values, so factors of the planned rank with any values tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression._latency import faster
from tensorlrf.compression.calibration._dense_layer import DenseLayer, dense_layer_at
from tensorlrf.compression.calibration.batches import call
from tensorlrf.decomposition.configs import Method, Structured
from tensorlrf.errors import ArgumentError
from tensorlrf.factors import Factors, Grouped
from tensorlrf.nn import factored_type
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
    inputs = _inputs_of(
        working, {dense_layer_at(working, name).module: name for name in methods}, example
    )
    slow = {}
    for name, method in methods.items():
        if name not in inputs:
            continue
        layer = dense_layer_at(working, name)
        seen = inputs[name]
        x = torch.empty_strided(seen.shape, seen.stride(), dtype=seen.dtype, device=layer.device)
        draws = torch.Generator("cpu").manual_seed(0)
        x.copy_(torch.rand(seen.shape, generator=draws, dtype=torch.float32, device="cpu"))
        kind = factored_type(layer.module)
        assert kind is not None
        dense, best = faster(
            layer.module, kind.from_factors(_any_factors(layer, method), layer.module), x
        )
        if best > dense * (1 - NOISE):
            slow[name] = (
                f"no faster on factors: {best * 1e3:.3g} ms against {dense * 1e3:.3g} ms dense on "
                "the example"
            )
    return slow


def _inputs_of(model: nn.Module, names: Mapping[nn.Module, str], example: Any) -> dict[str, Tensor]:
    """The input of each layer's first call, on the meta device: shapes and layouts are what counts,
    so that one input is alive at a time, at the timing."""
    inputs = _Inputs(names)
    handles = [m.register_forward_pre_hook(inputs.note, with_kwargs=True) for m in names]
    try:
        call(model, example, argument="example")
    finally:
        for handle in handles:
            handle.remove()
    return inputs.found


@dataclass(frozen=True)
class _Inputs:
    names: Mapping[nn.Module, str]
    found: dict[str, Tensor] = field(default_factory=dict)

    def note(self, layer: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
        """A hook before the forward of a layer."""
        x = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(x, Tensor):
            blank = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
            self.found.setdefault(self.names[layer], blank)


def _any_factors(layer: DenseLayer, method: Method) -> Factors:
    """Factors of the planned rank, of small random values; of a format whose sizes depend on the
    weight, those of the weight itself."""
    draws = torch.Generator("cpu").manual_seed(0)

    def values(*shape: int) -> Tensor:
        return torch.rand(shape, generator=draws, dtype=torch.float32, device="cpu").to(
            layer.device, layer.weight.dtype
        )

    def one(weight: Tensor) -> Factors:
        given = method.any_factors(method.rank, tuple(weight.shape), values)
        return method.decompose(weight.detach(), None, 0) if given is None else given

    parts = [one(weight) for weight in layer.group_weights()]
    return parts[0] if len(parts) == 1 else Grouped.stack(parts)
