"""Layers on factors of any values, and inputs of any values: what a layer costs depends on sizes
alone, so that nothing has to be factored to know it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.calibration.batches import call
from tensorlrf.decomposition.configs import Method
from tensorlrf.factors import Factors, Grouped
from tensorlrf.nn import FactoredLayer

Values = Callable[..., Tensor]
"""Of sizes a tensor."""


def factored_layer(layer: DenseLayer, method: Method) -> FactoredLayer:
    """The layer at the method's rank, of small random values; of a format whose sizes depend on the
    weight, on factors of the weight itself."""
    draws = torch.Generator("cpu").manual_seed(0)

    def values(*shape: int) -> Tensor:
        return torch.rand(shape, generator=draws, dtype=torch.float32, device="cpu").to(
            layer.device, layer.weight.dtype
        )

    factors = any_factors(layer, method, values)
    if factors is None:
        factors = _grouped([method.decompose(w.detach(), None, 0) for w in layer.group_weights()])
    return layer.on(factors)


def any_factors(layer: DenseLayer, method: Method, values: Values) -> Factors | None:
    """Factors of the method's rank made of `values`; None where only a fit tells the sizes."""
    O, *rest = layer.shape
    parts = []
    for _ in range(layer.groups):
        one = method.any_factors(method.rank, (O // layer.groups, *rest), values)
        if one is None:
            return None
        parts.append(one)
    return _grouped(parts)


def _grouped(parts: list[Factors]) -> Factors:
    return parts[0] if len(parts) == 1 else Grouped.stack(parts)


def blank_inputs(
    model: nn.Module, names: Mapping[nn.Module, str], batch: Any, argument: str
) -> dict[str, list[Tensor]]:
    """The inputs of all calls of each layer, on the meta device: shapes and layouts are what
    counts, so that one input is alive at a time, at the timing."""
    inputs = _Inputs(names)
    handles = [m.register_forward_pre_hook(inputs.note, with_kwargs=True) for m in names]
    try:
        call(model, batch, argument=argument)
    finally:
        for handle in handles:
            handle.remove()
    return inputs.found


def filled(blank: Tensor, device: torch.device) -> Tensor:
    """A tensor of this shape and layout, of random values in [0, 1)."""
    x = torch.empty_strided(blank.shape, blank.stride(), dtype=blank.dtype, device=device)
    draws = torch.Generator("cpu").manual_seed(0)
    return x.copy_(torch.rand(blank.shape, generator=draws, dtype=torch.float32, device="cpu"))


@dataclass(frozen=True)
class _Inputs:
    names: Mapping[nn.Module, str]
    found: dict[str, list[Tensor]] = field(default_factory=dict)

    def note(self, layer: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
        """A hook before the forward of a layer."""
        x = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(x, Tensor):
            blank = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
            self.found.setdefault(self.names[layer], []).append(blank)
