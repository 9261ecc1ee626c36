"""Bands of rows, each of a low rank of its own: of a table in which some rows count for more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors._base import Factors
from tensorlrf.factors._terms import checked_each, principal, refuse_gram
from tensorlrf.factors.arrays import PLACES, check_together, why_not_dense


@dataclass(frozen=True, eq=False, repr=False)
class BandedLowRank(Factors):
    """Rows of a table (V, d) in bands, each of a rank of its own or dense.

    With the rows in the order of their places, those of band b are `lefts[b] @ rights[b]`, or
    `lefts[b]` itself where it is dense. Which rows are in one band is free, so that frequent words
    may have a larger rank than rare ones.

    Parameters
    ----------
    lefts : tuple of Tensor
        One (n_b, r_b) a band; (n_b, d) of a dense one.
    rights : tuple of Tensor or None
        One (r_b, d) a band; None for a dense one.
    place : Tensor of shape (V,), int32
        Row v of the table is row `place[v]` of the bands, one behind the other: a permutation.
    axis : int
        0 for the table itself, 1 for its transpose (d, V), the weight of a layer on indicators.

    Raises
    ------
    ArgumentError, ShapeError
        Where these do not fit together.

    References
    ----------
    Chen, Si, Li, Chelba & Hsieh 2018, "GroupReduce", eq. 4.

    Examples
    --------
    >>> lefts, rights = (torch.eye(3), torch.ones(4, 1)), (None, torch.ones(1, 3))
    >>> place = torch.tensor([6, 0, 1, 2, 3, 4, 5], dtype=torch.int32)
    >>> f = tensorlrf.factors.BandedLowRank(lefts, rights, place)
    >>> f.shape, f.rank, f.to_dense()[0], f.to_dense()[1]
    ((7, 3), (1,), tensor([1., 1., 1.]), tensor([1., 0., 0.]))
    """

    lefts: tuple[Tensor, ...]
    rights: tuple[Tensor | None, ...]
    place: Tensor
    axis: int = 0

    format: ClassVar[str] = "banded"
    indices: ClassVar[frozenset[str]] = frozenset({"place"})

    def __post_init__(self) -> None:
        object.__setattr__(self, "lefts", tuple(self.lefts))
        object.__setattr__(self, "rights", tuple(self.rights))
        self.check()

    @property
    def shape(self) -> tuple[int, ...]:
        table = sum(int(left.shape[0]) for left in self.lefts), self._width()
        return table[::-1] if self.axis else table

    @property
    def rank(self) -> tuple[int, ...]:
        """That of each band which is not dense."""
        return tuple(int(right.shape[0]) for right in self.rights if right is not None)

    @property
    def starts(self) -> tuple[int, ...]:
        """The first row of each band, in the order of places."""
        starts = [0]
        for left in self.lefts[:-1]:
            starts.append(starts[-1] + int(left.shape[0]))
        return tuple(starts)

    @property
    def T(self) -> BandedLowRank:
        """The transpose, on the same memory."""
        return self._assemble(self.tensors(), {**self.meta(), "axis": 1 - self.axis})

    @property
    def has_terms(self) -> bool:
        return any(right is not None for right in self.rights)

    def leading(self, rank: Any) -> BandedLowRank:
        """The first terms of each band; a dense one stays whole."""
        if not self.has_terms:
            raise self._no_terms()
        ranks = iter(checked_each(rank, self.rank))
        cut: dict[str, Tensor] = {"place": self.place}
        for k, (left, right) in enumerate(zip(self.lefts, self.rights, strict=True)):
            if right is None:
                cut[f"left.{k}"] = left
            else:
                r = next(ranks)
                cut[f"left.{k}"], cut[f"right.{k}"] = left[:, :r], right[:r]
        return self._assemble(cut, self._context())

    def by_energy(self, gram: Tensor | None = None) -> BandedLowRank:
        refuse_gram(self, gram)
        if not self.has_terms:
            raise self._no_terms()
        pairs = [
            (left, None) if right is None else principal(left, right)
            for left, right in zip(self.lefts, self.rights, strict=True)
        ]
        lefts, rights = zip(*pairs, strict=True)
        return BandedLowRank(lefts, rights, self.place, self.axis)

    def tensors(self) -> dict[str, Tensor]:
        named = {f"left.{k}": left for k, left in enumerate(self.lefts)}
        named |= {f"right.{k}": r for k, r in enumerate(self.rights) if r is not None}
        return {**named, "place": self.place}

    def meta(self) -> dict[str, Any]:
        dense = [k for k, right in enumerate(self.rights) if right is None]
        return {"bands": len(self.lefts), "dense": dense, "axis": self.axis}

    @classmethod
    def _fields(cls, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
        bands, dense = range(meta["bands"]), meta["dense"]
        return {
            "lefts": tuple(tensors[f"left.{k}"] for k in bands),
            "rights": tuple(None if k in dense else tensors[f"right.{k}"] for k in bands),
            "place": tensors["place"],
            "axis": meta["axis"],
        }

    def check(self) -> None:
        if not self.lefts or len(self.lefts) != len(self.rights):
            raise ArgumentError(
                f"BandedLowRank: {len(self.lefts)} lefts and {len(self.rights)} rights; give one "
                "of each a band, None on the right of a dense one"
            )
        floats = {name: t for name, t in self.tensors().items() if name != "place"}
        check_together(floats, "BandedLowRank")
        if isinstance(self.axis, bool) or self.axis not in (0, 1):
            raise ArgumentError(f"BandedLowRank: axis={self.axis!r} must be 0 or 1")
        if any(t.ndim != 2 for t in floats.values()):
            sizes = {name: tuple(t.shape) for name, t in floats.items()}
            raise ShapeError(f"BandedLowRank: {sizes} must be matrices")
        d = self._width()
        for k, (left, right) in enumerate(zip(self.lefts, self.rights, strict=True)):
            wanted = (d, d) if right is None else (right.shape[0], right.shape[1])
            if left.shape[1] != wanted[0] or wanted[1] != d:
                told = "dense" if right is None else f"on right {tuple(right.shape)}"
                raise ShapeError(
                    f"BandedLowRank: band {k}, left {tuple(left.shape)}, is {told}; all bands have "
                    f"rows of {d}, and the columns of left are the rows of right"
                )
        self._check_place(sum(int(left.shape[0]) for left in self.lefts))

    def _check_place(self, rows: int) -> None:
        place = self.place
        if not isinstance(place, Tensor):
            raise ArgumentError(
                f"BandedLowRank: place is a {type(place).__name__}; pass a torch.Tensor"
            )
        if (unfit := why_not_dense(place)) is not None:
            raise ArgumentError(f"BandedLowRank: place {unfit}")
        if place.dtype != PLACES or place.device != self.device:
            raise ArgumentError(
                f"BandedLowRank: place is {place.dtype} on {place.device}; it must be {PLACES} on "
                f"{self.device}: bring it there with .to()"
            )
        if tuple(place.shape) != (rows,):
            raise ShapeError(
                f"BandedLowRank: place is {tuple(place.shape)}; the bands have {rows} rows"
            )
        if place.is_meta:
            return
        wanted = torch.arange(rows, dtype=PLACES, device=place.device)
        if not torch.equal(place.sort().values, wanted):
            raise ArgumentError(
                f"BandedLowRank: place must hold each number from 0 to {rows - 1} once, the row "
                "among the bands of each row of the table"
            )

    def _width(self) -> int:
        right = self.rights[0]
        return int((self.lefts[0] if right is None else right).shape[-1])

    def _dense(self) -> Tensor:
        bands = [
            left if right is None else left @ right
            for left, right in zip(self.lefts, self.rights, strict=True)
        ]
        table = torch.cat(bands).index_select(0, self.place)
        return table.T if self.axis else table
