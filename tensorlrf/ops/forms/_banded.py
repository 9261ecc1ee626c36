"""Bands of rows of unequal rank: rows are looked up in every band, zeros where they are in another
one, so that no number decides what runs; a head computes the bands one behind the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf.errors import UnsupportedError
from tensorlrf.factors import BandedLowRank
from tensorlrf.ops._counter import Counter
from tensorlrf.ops.forms._form import Form
from tensorlrf.ops.forms._symbol import leaf
from tensorlrf.ops.forms.shared._lookup import WithoutGradient
from tensorlrf.ops.forms.stages import (
    Concat,
    Matrix,
    Paths,
    Slice,
    Stage,
    Stages,
    Sum,
    Times,
    run_within,
)


class BandedForm(Form[BandedLowRank]):
    """As many products as there are bands, and one permutation."""

    def linear(self, f: BandedLowRank) -> Paths:
        if f.axis == 0:
            bands = tuple(
                (Matrix(left),) if right is None else (Matrix(right), Matrix(left))
                for left, right in zip(f.lefts, f.rights, strict=True)
            )
            return {"chain": (Concat(bands), Picked(f.place))}
        parts: list[Stages] = []
        for left, right, start in zip(f.lefts, f.rights, f.starts, strict=True):
            own = (Times(left),) if right is None else (Times(left), Times(right))
            parts.append((Slice(start, int(left.shape[0])), *own))
        return {"chain": (Placed(f.place), Sum(tuple(parts)))}

    def embedding(self, f: BandedLowRank, padding_idx: int | None) -> Paths:
        if f.axis:
            raise UnsupportedError(
                "factors is a BandedLowRank with bands of columns, axis=1, in which no rows are "
                "looked up; use factors.T"
            )
        low_rank: list[Stages] = []
        dense: list[Stages] = []
        for left, right, start in zip(f.lefts, f.rights, f.starts, strict=True):
            rows = RowsOfBand(left, start)
            if right is None:
                dense.append((rows,))
            else:
                low_rank.append((rows, Times(right)))
        parts = (*low_rank, *dense)  # a product goes first, whose dtype autocast may have lowered
        return {"chain": (Places(f.place), Added(parts), WithoutGradient(padding_idx))}

    def count_dense(self, f: BandedLowRank, counter: Counter) -> bool:
        for left, right in zip(f.lefts, f.rights, strict=True):
            if right is not None:
                counter.matmul(left.shape[0], left.shape[1], right.shape[1])
        counter.merge(f.shape[0] * f.shape[1])
        return True

    def transposed(self, f: BandedLowRank) -> BandedLowRank:
        return f.T

    def row_of(self, f: BandedLowRank, row: int) -> tuple[str, int]:
        at = int(f.place[row])
        band = max(k for k, start in enumerate(f.starts) if start <= at)
        return f"left.{band}", at - f.starts[band]


@dataclass(frozen=True, eq=False)
class Places(Stage):
    """From indices of rows to their places."""

    place: Tensor

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        y: Tensor = leaf(places)(x, self.place)
        return y

    def count(self, counter: Counter) -> None:
        counter.gather(counter.rows, 1)


@dataclass(frozen=True, eq=False)
class RowsOfBand(Stage):
    """The rows of a band at places x; zeros for those of other bands."""

    left: Tensor
    start: int

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        y: Tensor = leaf(rows_of_band)(x, self.left, self.start)
        return y

    def count(self, counter: Counter) -> None:
        counter.gather(counter.rows, self.left.shape[1])


@dataclass(frozen=True, eq=False)
class Added(Sum):
    """A sum in the dtype of the first path."""

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        y, *others = [run_within(path, x, first) for path in self.paths]
        for other in others:
            y = leaf(added)(y, other)
        return y


@dataclass(frozen=True, eq=False)
class Picked(Stage):
    """Outputs in the order of places to those of rows."""

    place: Tensor

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        return x.index_select(-1, self.place)

    def count(self, counter: Counter) -> None:
        counter.merge(counter.rows * self.place.shape[0])


@dataclass(frozen=True, eq=False)
class Placed(Stage):
    """Inputs in the order of rows to those of places."""

    place: Tensor

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        y: Tensor = leaf(placed)(x, self.place)
        return y

    def count(self, counter: Counter) -> None:
        counter.merge(counter.rows * self.place.shape[0])


def places(x: Tensor, place: Tensor) -> Tensor:
    """place[x], (...)."""
    return F.embedding(x, place[:, None])[..., 0]


def rows_of_band(at: Tensor, left: Tensor, start: int) -> Tensor:
    """(..., r): left[at - start], zeros where that is none of its rows."""
    own = at - start
    within = (own >= 0) & (own < left.shape[0])
    rows = F.embedding(own.clamp(0, left.shape[0] - 1), left)
    return torch.where(within[..., None], rows, torch.zeros_like(rows))


def added(y: Tensor, other: Tensor) -> Tensor:
    return y + other.to(y.dtype)


def placed(x: Tensor, place: Tensor) -> Tensor:
    """y (..., n) with y[place[v]] = x[v]."""
    return torch.zeros_like(x).index_copy(-1, place.long(), x)
