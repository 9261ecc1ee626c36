"""How much the blocks of a model change what passes through them.

A block is the outermost module of a list or sequence whose first output has the shape of its first
input: a layer of a transformer, a residual block. Its influence is 1 - cosine between the two, at
every position (Men et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tensorlrf.compression.calibration._outputs import tensors_of
from tensorlrf.compression.calibration.batches import Batch, call
from tensorlrf.compression.group._group import ALONE, Alone
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.nn.copies import replica


def influences(
    model: nn.Module,
    names: Sequence[str],
    batches: Sequence[Batch],
    advance: Callable[[], None],
    group: Alone = ALONE,
) -> dict[str, float]:
    """Of each layer the influence of its block; the mean of them of a layer that is in none. Empty
    where there is no block."""
    candidates = {name: _candidates(model, name) for name in names}
    seen: dict[str, _Seen] = {}
    for batch in batches:
        own = replica(model)
        handles = []
        for place in dict.fromkeys(p for places in candidates.values() for p in places):
            watch = _Watch(seen.setdefault(place, _Seen()), batch)
            handles.append(own.get_submodule(place).register_forward_hook(watch, with_kwargs=True))
        try:
            call(own, batch)
        finally:
            for handle in handles:
                handle.remove()
        advance()
    _over_ranks(seen, [p for places in candidates.values() for p in places], group)
    blocks = {place: one.influence for place, one in seen.items() if one.is_block}
    found = {
        name: next((blocks[p] for p in places if p in blocks), None)
        for name, places in candidates.items()
    }
    known = [value for value in found.values() if value is not None]
    mean = sum(known) / max(1, len(known))
    return {name: mean if value is None else value for name, value in found.items() if known}


def _candidates(model: nn.Module, name: str) -> list[str]:
    """The places around a layer, its own among them, that stand in a list or sequence, outermost
    first."""
    parts = name.split(".")
    found = []
    for k in range(1, len(parts) + 1):
        above = model.get_submodule(".".join(parts[: k - 1]))
        if isinstance(above, (nn.ModuleList, nn.Sequential)):
            found.append(".".join(parts[:k]))
    return found


@dataclass
class _Seen:
    """What passed a module: the sum of 1 - cosine, and of how many positions."""

    change: float = 0.0
    count: int = 0
    shapes: set[bool] = field(default_factory=set)

    @property
    def is_block(self) -> bool:
        """Whether outputs have had the shape of inputs in every call."""
        return self.shapes == {True} and self.count > 0

    @property
    def influence(self) -> float:
        return self.change / self.count


def _over_ranks(seen: dict[str, _Seen], places: Sequence[str], group: Alone) -> None:
    """Have them be those of all ranks."""
    if group.size == 1:
        return
    for place in dict.fromkeys(places):
        own = seen.setdefault(place, _Seen())
        told = group.gathered((own.change, own.count, own.shapes))
        own.change, own.count = sum(c for c, _, _ in told), sum(n for _, n, _ in told)
        own.shapes = set().union(*(shapes for _, _, shapes in told))


@dataclass(frozen=True)
class _Watch:
    """A hook on a module."""

    seen: _Seen
    batch: Batch

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        x = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        y = next(iter(tensors_of(output)), None)
        same = x is not None and y is not None and x.shape == y.shape and x.ndim > 1
        same = same and x.is_floating_point()  # type: ignore[union-attr]
        self.seen.shapes.add(same)
        if not same:
            return
        assert x is not None
        assert y is not None
        with without_autocast(), torch.no_grad():
            if _of_pictures(module, x):
                x, y = x.movedim(1, -1), y.movedim(1, -1)
            cosine = F.cosine_similarity(
                self.batch.tokens_of(x).float(), self.batch.tokens_of(y).float(), dim=-1
            )
            self.seen.change += float((1 - cosine).double().sum())
            self.seen.count += cosine.numel()


def _of_pictures(module: nn.Module, x: Tensor) -> bool:
    """Whether channels come second, as convolutions have them."""
    convs = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return x.ndim > 2 and any(isinstance(m, convs) for m in module.modules())
