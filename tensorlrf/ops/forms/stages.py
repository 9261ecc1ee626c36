"""What is done to x, one library call a stage.

A stage holds its weights and says four things of itself: how it runs, what it costs, whether torch
has a layer for it, and whether it can add the layer's bias. A path is a tuple of stages; stages
that go on side by side are held by one (`Concat`, `Sum`). Runs look at the shapes of the weights,
never at that of x, so that they hold for any number of leading dimensions and can be traced.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf.ops._counter import Counter
from tensorlrf.ops.forms._symbol import Symbol, leaf


class Library(NamedTuple):
    """The layer of torch that computes what a stage does.

    Parameters
    ----------
    kind : str
        "Linear", "Embedding", "Conv1d", "Conv2d" or "Conv3d".
    weight : Tensor
        As that layer has it.
    options : dict
        Of a convolution: stride, padding, dilation and groups.
    """

    kind: str
    weight: Tensor
    options: dict[str, Any]


NOTHING = Library("Identity", torch.empty(0, dtype=torch.float32, device="cpu"), {})
"""Of a stage that the layers of torch around it do by themselves."""


@dataclass(frozen=True, eq=False)
class Stage:
    """One step of a path. Subclasses are frozen dataclasses of weights and numbers.

    A stage says how it runs, what it costs, whether torch has a layer for it, and whether it can
    add the layer's bias.

    Examples
    --------
    >>> from tensorlrf.ops.forms import Matrix
    >>> step = Matrix(torch.ones(3, 2))
    >>> step.run(torch.ones(1, 2), None, torch.ones(1, 2)), step.library().kind
    (tensor([[2., 2., 2.]]), 'Linear')
    """

    adds_bias: ClassVar[bool] = False
    """Whether `run` takes the bias of the layer, where the stage is the last one."""

    keeps_layout: ClassVar[bool] = True
    """Whether the result, where the stage is the last of a convolution, lies in memory as x."""

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        """What the stage makes of x; `first` is what the path was given."""
        raise NotImplementedError

    def count(self, counter: Counter) -> None:
        """Count the calls of `run` for the rows, or places, that the counter stands at."""

    def serves(self, rows: int, dtype: torch.dtype) -> bool:
        """Whether the stage is what runs for so many rows of output; else the path "chain" is."""
        return True

    def library(self) -> Library | None:
        """The layer of torch that does the same; None where there is none."""
        return None

    def weights(self) -> Iterator[Any]:
        """The weights among the fields, those of stages within too."""
        yield from _weights([getattr(self, field.name) for field in fields(self)])


Stages = tuple[Stage, ...]
Paths = dict[str, Stages]
"""A path by its name -> what is done to x on it."""


def weights(stages: Stages) -> Iterator[Any]:
    """Those of all stages."""
    yield from _weights(stages)


def _weights(value: Any) -> Iterator[Any]:
    if isinstance(value, (Tensor, Symbol)):
        yield value
    elif isinstance(value, Stage):
        yield from value.weights()
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _weights(one)


def run(stages: Stages, x: Tensor, bias: Tensor | None = None, axes: int = 0) -> Tensor:
    """x on its way through the stages; the bias, which belongs `axes` dimensions before the last
    one, is added by the last stage or else behind it."""
    t = x
    for stage in stages[:-1]:
        t = run_stage(stage, t, None, x)
    last = stages[-1]
    y = run_stage(last, t, bias if last.adds_bias else None, x)
    return y if last.adds_bias else add_bias(y, bias, axes)


def run_stage(stage: Stage, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
    """The stage, whose weights are views that are taken now."""
    for weight in stage.weights():
        if isinstance(weight, Symbol):
            weight.take()
    return stage.run(x, bias, first)


def run_within(stages: Stages, x: Tensor, first: Tensor) -> Tensor:
    """Stages that another one holds."""
    for stage in stages:
        x = run_stage(stage, x, None, first)
    return x


def count(stages: Stages, counter: Counter) -> None:
    """What the stages cost, one after the other."""
    for stage in stages:
        stage.count(counter)


@leaf
def add_bias(y: Tensor, bias: Tensor | None, axes: int) -> Tensor:
    """y + bias, in the dtype of y, which autocast may have lowered."""
    if bias is None:
        return y
    bias = bias.to(y.dtype)
    return y + (bias.reshape(-1, *(1,) * axes) if axes else bias)


# ---- one product --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Matrix(Stage):
    """One product, x @ weight^T + bias.

    Parameters
    ----------
    weight : Tensor of shape (m, n)
    """

    weight: Tensor
    adds_bias = True

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        return F.linear(x, self.weight, bias)

    def count(self, counter: Counter) -> None:
        m, n = self.weight.shape
        counter.matmul(counter.rows, n, m)

    def library(self) -> Library:
        return Library("Linear", self.weight, {})


@dataclass(frozen=True, eq=False)
class Times(Stage):
    """One product, x @ matrix.

    Parameters
    ----------
    matrix : Tensor of shape (n, m)
    """

    matrix: Tensor

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        return x @ self.matrix

    def count(self, counter: Counter) -> None:
        n, m = self.matrix.shape
        counter.matmul(counter.rows, n, m)

    def library(self) -> Library:
        return Library("Linear", self.matrix.T, {})


@dataclass(frozen=True, eq=False)
class Lookup(Stage):
    """The rows of a table that x, which are indices, names.

    Parameters
    ----------
    table : Tensor of shape (n, r)
    """

    table: Tensor

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        return F.embedding(x, self.table)

    def count(self, counter: Counter) -> None:
        counter.gather(counter.rows, self.table.shape[1])

    def library(self) -> Library:
        return Library("Embedding", self.table, {})


@dataclass(frozen=True, eq=False)
class Einsum(Stage):
    """Products side by side, as "...kn,kmn->...km" for a block-diagonal weight (K, m, n).

    Parameters
    ----------
    equation : str
    weight : Tensor
    copied : bool
        Whether what follows has to bring the result in order.
    """

    equation: str
    weight: Tensor
    copied: bool = False

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        return torch.einsum(self.equation, x, self.weight)

    def count(self, counter: Counter) -> None:
        of_x, of_weight, of_y = self.equation.replace("...", "").replace("->", ",").split(",")
        size = dict(zip(of_weight, self.weight.shape, strict=True))
        batch = math.prod([size[c] for c in of_weight if c in of_x and c in of_y])
        summed = math.prod([size[c] for c in of_weight if c not in of_y])
        free = math.prod([size[c] for c in of_weight if c not in of_x])
        counter.products(batch, counter.rows, summed, free)
        if self.copied:
            counter.merge(counter.rows * batch * free)


# ---- parts of x ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Pad(Stage):
    """Zeros on either side of the last dimension of x.

    Parameters
    ----------
    before, after : int
        How many.
    """

    before: int
    after: int

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        return F.pad(x, (self.before, self.after))


@dataclass(frozen=True, eq=False)
class Slice(Stage):
    """Some numbers of the last dimension of x.

    Parameters
    ----------
    start : int
        The first of them.
    size : int
        How many.
    """

    start: int
    size: int

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        return x[..., self.start : self.start + self.size]


@dataclass(frozen=True, eq=False)
class Split(Stage):
    """The last dimension of x as several: (..., K n) to (..., K, n).

    Parameters
    ----------
    sizes : tuple of int
    """

    sizes: tuple[int, ...]

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        return torch.unflatten(x, -1, self.sizes)


@dataclass(frozen=True, eq=False)
class Join(Stage):
    """The last two dimensions as one: (..., K, n) to (..., K n)."""

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        return x.flatten(-2)


@dataclass(frozen=True, eq=False)
class Permute(Stage):
    """The last two dimensions of x, (..., K, Q r), as (..., Q, K r): a copy.

    Parameters
    ----------
    K : int
    Q : int
    r : int
    """

    K: int
    Q: int
    r: int

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.Q, self.r)).transpose(-3, -2).flatten(-2)

    def count(self, counter: Counter) -> None:
        counter.merge(counter.rows * self.K * self.Q * self.r)


@dataclass(frozen=True, eq=False)
class Crop(Stage):
    """The first `size` numbers of the last dimension of x."""

    size: int

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        return x[..., : self.size]


def widened(columns: int, padded: int) -> Stages:
    """From x of so many columns to one of more, the others zeros; nothing where there are none,
    since a padding of nothing would be a copy."""
    return () if columns == padded else (Pad(0, padded - columns),)


def cut(padded: int, rows: int) -> Stages:
    """The first rows of y."""
    return () if rows == padded else (Crop(rows),)


# ---- side by side -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Concat(Stage):
    """Several paths from x, whose ends are one behind the other in the last dimension.

    Parameters
    ----------
    paths : tuple of tuple of Stage
    """

    paths: tuple[Stages, ...]

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        return torch.cat([run_within(path, x, first) for path in self.paths], -1)

    def count(self, counter: Counter) -> None:
        for path in self.paths:
            count(path, counter)


@dataclass(frozen=True, eq=False)
class Sum(Stage):
    """Several paths from x, whose ends are added.

    Parameters
    ----------
    paths : tuple of tuple of Stage
    """

    paths: tuple[Stages, ...]

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        y, *others = [run_within(path, x, first) for path in self.paths]
        for other in others:
            y = y + other
        return y

    def count(self, counter: Counter) -> None:
        for path in self.paths:
            count(path, counter)
