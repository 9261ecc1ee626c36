"""Second moments of channels, and of queries, keys and heads' outputs, over the calibration inputs.

All are sums over tokens, padding left out, as the given model has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

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


@dataclass(frozen=True)
class Passed:
    """What passes in one call: rows (N, ...) of tokens, and where it is laid out by samples, their
    sums (samples, ...) over each, and how many tokens each has."""

    rows: Tensor
    sums: Tensor | None
    lengths: Tensor | None

    def part(self, first: int, last: int, width: int) -> Passed:
        """Of the columns of heads, (N, heads, width)."""
        rows = cut(self.rows[:, first:last], 1, -1, width)
        sums = None if self.sums is None else cut(self.sums[:, first:last], 1, -1, width)
        return Passed(rows, sums, self.lengths)


class Products(Protocol):
    """The sum of x x^T over rows (N, ..., n)."""

    def take(self, rows: Tensor) -> None:
        """Add rows, in float32 or float64."""

    def total(self) -> Tensor:
        """The sum, symmetric."""


class Pooled:
    """Sums over the tokens of each sample, (samples, ...), as far as they are told."""

    def __init__(self, squares: Callable[[], Products], like: Tensor) -> None:
        self.squares = squares()
        self.weighted = torch.zeros_like(like)
        self.length = 0.0

    def take(self, sums: Tensor, lengths: Tensor) -> None:
        """Add those of some samples."""
        self.squares.take(raised(sums))
        wide = lengths.to(sums.device, torch.float64)
        self.weighted += torch.tensordot(wide, sums.to(torch.float64), 1)
        self.length += float(wide.square().sum())

    def about(self, mean: Tensor, count: int) -> Tensor:
        """Of sums about as many times the mean, over the number of tokens."""
        cross = self.weighted[..., :, None] * mean[..., None, :]
        outer = mean[..., :, None] * mean[..., None, :]
        return (self.squares.total() - cross - cross.mT + self.length * outer) / count


class Square:
    """Of rows (N, n)."""

    def __init__(self, n: int, device: torch.device) -> None:
        self._whole = Whole(n, device)

    def take(self, rows: Tensor) -> None:
        """Add rows."""
        self._whole.take(rows)

    def total(self) -> Tensor:
        """The sum; nothing is added any more."""
        return self._whole.mean(1)


class Squares:
    """Of each head of rows (N, heads, d)."""

    def __init__(self, heads: int, d: int, device: torch.device) -> None:
        self._sum = torch.zeros(heads, d, d, dtype=torch.float64, device=device)

    def take(self, rows: Tensor) -> None:
        """Add rows."""
        per_head = rows.transpose(0, 1)
        self._sum += per_head.mT @ per_head

    def total(self) -> Tensor:
        """The sum."""
        return (self._sum + self._sum.mT) / 2


class Moments:
    """First and second moments of rows (N, ..., n), and of their sums over samples."""

    def __init__(self, squares: Callable[[], Products], mean: Tensor) -> None:
        self.count = 0
        self.fourth = 0.0
        self._sum = mean
        self._squares = squares()
        self._pooled = Pooled(squares, mean)

    def take(self, passed: Passed) -> None:
        """Add what passes in one call."""
        rows = raised(passed.rows)
        self.count += len(rows)
        self.fourth += float(rows.flatten(1).square().sum(1, dtype=torch.float64).square().sum())
        self._sum += rows.sum(0, dtype=torch.float64)
        self._squares.take(rows)
        if passed.sums is not None and passed.lengths is not None:
            self._pooled.take(passed.sums, passed.lengths)

    def mean(self) -> Tensor:
        """E[x], (..., n)."""
        return self._sum / max(1, self.count)

    def second(self, *, centred: bool) -> Tensor:
        """E[x x^T] (..., n, n), about the mean or not."""
        mean = self.mean()
        squares = self._squares.total() / max(1, self.count)
        return squares - mean[..., :, None] * mean[..., None, :] if centred else squares

    def amount(self, gram: Tensor) -> float:
        """By how much moments (n, n) of so many rows are to be shrunk: not at all where these are
        many."""
        if self.count >= THIN * len(gram):
            return 0.0
        return ledoit_wolf(gram, self.fourth / max(1, self.count), self.count)

    def felt(self, shared: float, *, centred: bool) -> Tensor:
        """The same with errors that add up over a sample in the part that gradients share there:
        (1 - shared) E[x x^T] + shared E[s s^T] over tokens, with s the sum over a sample."""
        plain = self.second(centred=centred)
        if shared <= 0 or self._pooled.length == 0:
            return plain
        mean = self.mean() if centred else torch.zeros_like(self._sum)
        return (1 - shared) * plain + shared * self._pooled.about(mean, max(1, self.count))


def of_rows(n: int, device: torch.device) -> Moments:
    """Of rows (N, n), none so far."""
    zero = torch.zeros(n, dtype=torch.float64, device=device)
    return Moments(partial(Square, n, device), zero)


def of_heads(heads: int, d: int, device: torch.device) -> Moments:
    """Of each head of rows (N, heads, d), none so far."""
    zero = torch.zeros(heads, d, dtype=torch.float64, device=device)
    return Moments(partial(Squares, heads, d, device), zero)


class ChannelMoments:
    """Of the channels of a perceptron or bottleneck, as each layer that reads them gets them."""

    def __init__(self, model: nn.Module, channels: Channels) -> None:
        self.channels = channels
        self.read: dict[str, Moments] = {}
        for name in channels.readers:
            layer = dense_layer_at(model, name)
            self.read[name] = of_rows(layer.shape[1], layer.device)

    @property
    def count(self) -> int:
        """Rows that the layer behind them has seen."""
        return self.read[self.channels.down].count

    def hooks(self, model: nn.Module, batch: Batch) -> Iterator[Any]:
        """Handles of hooks that add what passes in one call of the model."""
        for name, moments in self.read.items():
            dim = dense_layer_at(model, name).channel_dim
            yield _on_input(model, name, _Take(batch, moments.take, dim))


class HeadMoments:
    """Of queries and keys, before they are turned, and of what the heads put out."""

    def __init__(self, model: nn.Module, heads: Heads) -> None:
        device = dense_layer_at(model, heads.out).device
        self.heads = heads
        self.queries = of_heads(heads.queries, heads.width, device)
        self.keys = of_heads(heads.keys, heads.width, device)
        self.outputs = of_heads(heads.queries, heads.width, device)

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

    def _add_packed(self, passed: Passed) -> None:
        d = self.heads.width
        q, k = self.heads.queries * d, self.heads.keys * d
        self.queries.take(passed.part(0, q, d))
        self.keys.take(passed.part(q, q + k, d))

    def _add_queries(self, passed: Passed) -> None:
        self.queries.take(passed.part(0, passed.rows.shape[1], self.heads.width))

    def _add_keys(self, passed: Passed) -> None:
        self.keys.take(passed.part(0, passed.rows.shape[1], self.heads.width))

    def _add_outputs(self, passed: Passed) -> None:
        self.outputs.take(passed.part(0, passed.rows.shape[1], self.heads.width))


Seen = ChannelMoments | HeadMoments


def of(model: nn.Module, structure: Structure) -> Seen:
    """Nothing seen yet."""
    if isinstance(structure, Channels):
        return ChannelMoments(model, structure)
    return HeadMoments(model, structure)


def bytes_of(model: nn.Module, structure: Structure) -> int:
    """What its moments take."""
    if isinstance(structure, Channels):
        return 16 * len(structure.readers) * structure.most(model) ** 2
    return 16 * structure.width**2 * (2 * structure.queries + structure.keys)


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
    """Takes what passes, with n channels along a dimension, without padding."""

    batch: Batch
    add: Callable[[Passed], None]
    dim: int = -1

    def __call__(self, name: str, x: Tensor) -> None:
        with without_autocast(), torch.no_grad():
            x = x.detach().movedim(self.dim, -1)
            rows = self.batch.tokens_of(x).flatten(0, -2)
            if not torch.isfinite(rows).all():
                raise ArgumentError(
                    f"calibration: what passes {name} contains NaN or Inf; look at the batches, "
                    f"and at the layers before it, or leave it out with skip=[{name!r}]"
                )
            self.add(Passed(rows, *by_sample(self.batch, x)))


def by_sample(batch: Batch, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """(sums (samples, n) over the tokens of each sample, how many these are) of x (samples, ...,
    n); (None, None) where it is not laid out so."""
    if x.ndim < 3 or x.shape[0] != batch.samples:
        return None, None
    mask = batch.mask
    x = raised(x)
    if mask is not None and mask.device == x.device and x.shape[:-1] == mask.shape:
        return (x * mask[..., None]).sum(1), mask.sum(1)
    rows = x.flatten(1, -2)
    return rows.sum(1), torch.full((len(rows),), rows.shape[1], device=x.device)


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
