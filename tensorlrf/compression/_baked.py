"""A model in which plain layers stand for those that make their weight in every forward."""

from __future__ import annotations

from torch import nn

from tensorlrf.compression._exchange import exchanged
from tensorlrf.nn.convolutions.baked import baked, is_baked, origin_of


def with_baked(model: nn.Module) -> nn.Module:
    """The model with such layers, as weight-standardised convolutions, exchanged for plain ones on
    the weight that they make; the given one stays as it is."""
    return exchanged(model, baked)


def without_baked(model: nn.Module) -> nn.Module:
    """A model of one's own in which those that are still there are what they were again."""

    def origin(module: nn.Module) -> nn.Module | None:
        return origin_of(module) if is_baked(module) else None

    return exchanged(model, origin)
