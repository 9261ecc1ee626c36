"""One pass forth and back of a model, with a look at gradients where layers put out something."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tensorlrf.compression.calibration._dense_layer import DenseLayer, dense_layer_at
from tensorlrf.compression.calibration.batches import Batch, call
from tensorlrf.compression.group._group import ALONE, Alone
from tensorlrf.compression.losses._output_loss import OutputLoss
from tensorlrf.errors import ArgumentError
from tensorlrf.nn.copies import replica


class Watcher(Protocol):
    """Of one layer."""

    def forward(
        self, site: DenseLayer, batch: Batch, x: Any, y: Tensor
    ) -> Callable[[Tensor], None] | None:
        """After a call of the layer: what is to be done with the gradient at y, if anything."""


@dataclass(frozen=True)
class Together:
    """Two watchers of one layer."""

    one: Watcher
    other: Watcher

    def forward(
        self, site: DenseLayer, batch: Batch, x: Any, y: Tensor
    ) -> Callable[[Tensor], None] | None:
        """After a call of the layer."""
        takes = [w.forward(site, batch, x, y) for w in (self.one, self.other)]
        found = [take for take in takes if take is not None]
        return partial(_all_of, found) if found else None


def _all_of(takes: Sequence[Callable[[Tensor], None]], g: Tensor) -> None:
    for take in takes:
        take(g)


class OwnCotangents:
    """Generators of what is drawn for batches, one for each, whichever others come before it and
    whichever rank it is on; seeded by one draw of a given one."""

    def __init__(self, draws: torch.Generator, group: Alone = ALONE) -> None:
        own = int(torch.randint(1 << 40, (), generator=draws, device=draws.device))
        self._seed, self._device = group.of(0, own), draws.device

    def of(self, batch: Batch) -> torch.Generator:
        """Of one batch, at its beginning."""
        return torch.Generator(self._device).manual_seed(self._seed + batch.index)


def differentiate(
    model: nn.Module,
    watchers: Mapping[str, Watcher],
    batch: Batch,
    loss: OutputLoss,
    draws: torch.Generator,
) -> float:
    """Pull one drawn cotangent of the outputs back to the layers; the weight of the batch in the
    loss.

    Raises what the model does where it cannot be differentiated.
    """
    own = replica(model)
    for parameter in own.parameters():
        if not nn.parameter.is_lazy(parameter):
            parameter.requires_grad_(False)
    handles = []
    for name, watcher in watchers.items():
        site = dense_layer_at(own, name)
        hook = _Hook(watcher, site, batch).after
        handles.append(site.module.register_forward_hook(hook, with_kwargs=True))
    try:
        output = _called(own, batch)
        with torch.enable_grad():
            scalar, count = loss.cotangent(output, batch, draws)
        del output  # logits may be the largest of all that is alive
        if scalar.requires_grad:
            scalar.backward()  # type: ignore[no-untyped-call]
    finally:
        for handle in handles:
            handle.remove()
    return count


def _called(model: nn.Module, batch: Batch) -> Any:
    """With grad; raises what the model itself raises where it runs without alone."""
    try:
        return call(model, batch, grad=True)
    except ArgumentError as error:
        if isinstance(error.__cause__, RuntimeError):
            raise error.__cause__ from None
        raise


@dataclass(frozen=True)
class _Hook:
    """On one layer."""

    watcher: Watcher
    site: DenseLayer
    batch: Batch

    def after(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Any
    ) -> Tensor | None:
        """A call of the layer."""
        if not isinstance(y, Tensor) or not torch.is_grad_enabled():
            return None
        x = args[0] if args else next(iter(kwargs.values()), None)
        take = self.watcher.forward(self.site, self.batch, x, y)
        if take is None:
            return None
        if y.requires_grad:
            y.register_hook(take)  # type: ignore[no-untyped-call]
            return None
        # The graph begins here. What follows may work in place, which a leaf does not take.
        leaf = y.detach().requires_grad_()
        leaf.register_hook(take)  # type: ignore[no-untyped-call]
        return leaf.clone()
