"""Second moments of channels, and of queries, keys and heads' outputs, over the calibration inputs.

All are sums over tokens, padding left out, as the given model has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression.calibration._dense_layer import dense_layer_at, module_at
from tensorlrf.compression.calibration.batches import Batch, call
from tensorlrf.compression.calibration.moments._sums import Whole, raised
from tensorlrf.compression.modular._structures import Channels, Heads, Structure, cut
from tensorlrf.decomposition.shrinkage import ledoit_wolf
from tensorlrf.errors import ArgumentError
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.nn.copies import replica

THIN = 4
"""Samples for each column below which moments are shrunk."""


class Rows:
    """Of rows (N, n) the count, the sum and the sum of x x^T."""

    def __init__(self, n: int, device: torch.device) -> None:
        self.count = 0
        self.fourth = 0.0
        self._sum = torch.zeros(n, dtype=torch.float64, device=device)
        self._squares = Whole(n, device)

    def take(self, rows: Tensor) -> None:
        """Add rows (N, n)."""
        rows = raised(rows)
        self.count += len(rows)
        self.fourth += float(rows.double().square().sum(1).square().sum())
        self._sum += rows.sum(0, dtype=torch.float64)
        self._squares.take(rows)

    def moments(self) -> tuple[Tensor, Tensor]:
        """(E[x x^T] (n, n), E[x] (n,)); nothing is added any more."""
        return self._squares.mean(max(1, self.count)), self._sum / max(1, self.count)


class PerHead:
    """Of rows (N, heads, d) the same for each head."""

    def __init__(self, heads: int, d: int, device: torch.device) -> None:
        self.count = 0
        self._sum = torch.zeros(heads, d, dtype=torch.float64, device=device)
        self._squares = torch.zeros(heads, d, d, dtype=torch.float64, device=device)

    def take(self, rows: Tensor) -> None:
        """Add rows (N, heads, d)."""
        rows = raised(rows).transpose(0, 1)  # (heads, N, d)
        self.count += rows.shape[1]
        self._sum += rows.sum(1, dtype=torch.float64)
        self._squares += rows.mT @ rows

    def moments(self) -> tuple[Tensor, Tensor]:
        """(E[x x^T] (heads, d, d), E[x] (heads, d))."""
        count = max(1, self.count)
        squares = (self._squares + self._squares.mT) / 2
        return squares / count, self._sum / count


class ChannelMoments:
    """Of the channels of a perceptron."""

    def __init__(self, model: nn.Module, channels: Channels) -> None:
        down = dense_layer_at(model, channels.down)
        self.rows = Rows(down.shape[1], down.device)
        self.channels = channels

    @property
    def count(self) -> int:
        """Tokens seen."""
        return self.rows.count

    def amount(self, gram: Tensor) -> float:
        """By how much their moments (n, n) are to be shrunk: not at all where samples are many."""
        if self.count >= THIN * len(gram):
            return 0.0
        return ledoit_wolf(gram, self.rows.fourth / max(1, self.count), self.count)

    def hooks(self, model: nn.Module, batch: Batch) -> Iterator[Any]:
        """Handles of hooks that add what passes in one call of the model."""
        yield _on_input(model, self.channels.down, _Take(batch, self._add))

    def _add(self, rows: Tensor) -> None:
        self.rows.take(rows)


class HeadMoments:
    """Of queries and keys, before they are turned, and of what the heads put out."""

    def __init__(self, model: nn.Module, heads: Heads) -> None:
        device = dense_layer_at(model, heads.out).device
        self.heads = heads
        self.queries = PerHead(heads.queries, heads.width, device)
        self.keys = PerHead(heads.keys, heads.width, device)
        self.outputs = PerHead(heads.queries, heads.width, device)

    @property
    def count(self) -> int:
        """Tokens seen."""
        return self.outputs.count

    def hooks(self, model: nn.Module, batch: Batch) -> Iterator[Any]:
        """Handles of hooks that add what passes in one call of the model."""
        heads = self.heads
        if heads.packed:
            yield _on_output(model, heads.query, _Take(batch, self._add_packed))
        else:
            yield _on_output(model, heads.query, _Take(batch, self._add_queries))
            yield _on_output(model, heads.key, _Take(batch, self._add_keys))
        yield _on_input(model, heads.out, _Take(batch, self._add_outputs))

    def _add_packed(self, rows: Tensor) -> None:
        q, k = self.heads.queries * self.heads.width, self.heads.keys * self.heads.width
        self._add_queries(rows[:, :q])
        self._add_keys(rows[:, q : q + k])

    def _add_queries(self, rows: Tensor) -> None:
        self.queries.take(cut(rows, 1, -1, self.heads.width))

    def _add_keys(self, rows: Tensor) -> None:
        self.keys.take(cut(rows, 1, -1, self.heads.width))

    def _add_outputs(self, rows: Tensor) -> None:
        self.outputs.take(cut(rows, 1, -1, self.heads.width))


Seen = ChannelMoments | HeadMoments


def of(model: nn.Module, structure: Structure) -> Seen:
    """Nothing seen yet."""
    if isinstance(structure, Channels):
        return ChannelMoments(model, structure)
    return HeadMoments(model, structure)


def bytes_of(model: nn.Module, structure: Structure) -> int:
    """What its moments take."""
    if isinstance(structure, Channels):
        return 8 * structure.most(model) ** 2
    return 8 * structure.width**2 * (2 * structure.queries + structure.keys)


def gathered(
    model: nn.Module,
    structures: Sequence[Structure],
    batches: Sequence[Batch],
    advance: Callable[[str], None],
) -> list[Seen]:
    """The moments of each structure, in one pass over the batches."""
    seen = [of(model, one) for one in structures]
    for batch in batches:
        own = replica(model)
        with ExitStack() as stack:
            for one in seen:
                for handle in one.hooks(own, batch):
                    stack.callback(handle.remove)
            call(own, batch)
        advance("")
    return seen


def parts(
    model: nn.Module, structures: Sequence[Structure], room: int
) -> Iterator[list[Structure]]:
    """Structures whose moments find room together, one at the least."""
    part: list[Structure] = []
    taken = 0
    for one in structures:
        need = bytes_of(model, one)
        if part and taken + need > room:
            yield part
            part, taken = [], 0
        part.append(one)
        taken += need
    if part:
        yield part


@dataclass(frozen=True)
class _Take:
    """Takes the rows of tokens in a tensor (..., n)."""

    batch: Batch
    add: Callable[[Tensor], None]

    def __call__(self, name: str, x: Tensor) -> None:
        with without_autocast(), torch.no_grad():
            rows = self.batch.tokens_of(x.detach()).flatten(0, -2)
            if not torch.isfinite(rows).all():
                raise ArgumentError(
                    f"calibration: what passes {name} contains NaN or Inf; look at the batches, "
                    f"and at the layers before it, or leave it out with skip=[{name!r}]"
                )
            self.add(rows)


def _on_input(model: nn.Module, name: str, take: _Take) -> Any:
    return module_at(model, name).register_forward_pre_hook(_Input(name, take), with_kwargs=True)


def _on_output(model: nn.Module, name: str, take: _Take) -> Any:
    return module_at(model, name).register_forward_hook(_Output(name, take))


@dataclass(frozen=True)
class _Input:
    name: str
    take: _Take

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        self.take(self.name, x)


@dataclass(frozen=True)
class _Output:
    name: str
    take: _Take

    def __call__(self, _: nn.Module, args: tuple[Any, ...], y: Tensor) -> None:
        self.take(self.name, y)
