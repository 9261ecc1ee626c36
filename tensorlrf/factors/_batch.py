"""The factors of many tensors of one shape, stacked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError, unknown
from tensorlrf.factors._alike import stacked
from tensorlrf.factors._base import FORMATS, Factors
from tensorlrf.factors.arrays import check_together


@dataclass(frozen=True, eq=False, repr=False)
class Batch(Factors):
    """Factors of one format, rank and shape, one for each item of a batch.

    Where one item stands for (n_0, n_1, ...) the whole is (b_1, b_2, ..., n_0, n_1, ...). As with a
    tensor, `f[i]` is item i of the first dimension: the factors of one item where the batch has one
    dimension, else the Batch of those that are left; `f[i, j]` takes two dimensions at once. Made
    by the decompositions that take `batch_dims=`, and by `Batch.stack`.

    Parameters
    ----------
    parts : dict
        The tensors of the format by name, each with the dimensions `batch_shape` in front.
    of : str
        Name of the format, such as "lowrank".
    batch_shape : tuple of int
        (b_1, b_2, ...), one dimension at least.
    of_meta : dict
        `meta()` of the factors of one item.

    Raises
    ------
    ArgumentError, ShapeError
        Where these do not fit together.

    Examples
    --------
    >>> weights = torch.rand(3, 8, 6)
    >>> batch = tensorlrf.svd(weights, 2, batch_dims=1)
    >>> batch.shape, batch[0].rank
    ((3, 8, 6), 2)
    """

    parts: dict[str, Tensor]
    of: str
    batch_shape: tuple[int, ...]
    of_meta: dict[str, Any]

    format: ClassVar[str] = "batch"

    @classmethod
    def stack(cls, places: Sequence[Factors], batch_shape: Sequence[int] | None = None) -> Batch:
        """The batch of these, in C order of `batch_shape`.

        Parameters
        ----------
        places : sequence of Factors
            Of one format, rank, shape, dtype and device.
        batch_shape : sequence of int, optional
            (len(places),) by default.

        Returns
        -------
        Batch

        Raises
        ------
        ArgumentError, ShapeError
            Where there are none, they differ in one of these, or do not fill `batch_shape`.
        """
        places = tuple(places)
        parts = stacked("place", places, Batch)
        sizes = (len(places),) if batch_shape is None else tuple(batch_shape)
        if math.prod(sizes) != len(places):
            raise ShapeError(
                f"batch_shape={sizes} has {math.prod(sizes)} places, {len(places)} were given"
            )
        parts = {name: t.reshape(*sizes, *t.shape[1:]) for name, t in parts.items()}
        return cls(parts, places[0].format, sizes, places[0].meta())

    def __len__(self) -> int:
        return self.batch_shape[0]

    def __iter__(self) -> Iterator[Factors]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int | tuple[int, ...]) -> Factors:
        """The factors at a place, views of the stack; each index may count from the end.

        Raises ArgumentError for more indices than the batch has dimensions, and for one that is
        not a whole number in range.
        """
        given = index if isinstance(index, tuple) else (index,)
        if not given or len(given) > len(self.batch_shape):
            raise ArgumentError(
                f"index {index!r} must have 1 to {len(self.batch_shape)} entries, for the batch "
                f"{self.batch_shape}"
            )
        for i, size in zip(given, self.batch_shape, strict=False):
            if isinstance(i, bool) or not isinstance(i, int) or not -size <= i < size:
                raise ArgumentError(
                    f"index {i!r} must be a whole number from 0 to {size - 1}, in the batch "
                    f"{self.batch_shape}"
                )
        parts = {name: t[given] for name, t in self.parts.items()}
        left = self.batch_shape[len(given) :]
        if left:
            return self._assemble(parts, {**self.meta(), "batch_shape": list(left)})
        return self._format()._assemble(parts, self.of_meta)

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.batch_shape, *self._first().shape)

    @property
    def rank(self) -> int | tuple[int, ...]:
        """The rank at one place; all have the same."""
        return self._first().rank

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.parts)

    def meta(self) -> dict[str, Any]:
        return {"of": self.of, "batch_shape": list(self.batch_shape), "meta": dict(self.of_meta)}

    @classmethod
    def _fields(cls, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
        of, sizes, inner = meta["of"], meta["batch_shape"], meta["meta"]
        if not isinstance(of, str) or of not in FORMATS or FORMATS[of] is cls:
            raise unknown("of", of, [name for name in FORMATS if name != cls.format])
        if not isinstance(inner, Mapping):
            raise ArgumentError(f"Batch: meta={inner!r} must be a mapping, that of {of!r}")
        if isinstance(sizes, str) or not isinstance(sizes, Sequence):
            raise ArgumentError(f"Batch: batch_shape={sizes!r} must be a list of sizes")
        # As the format names and orders them.
        parts = FORMATS[of]._assemble(tensors, inner).tensors()
        return {"parts": parts, "of": of, "batch_shape": tuple(sizes), "of_meta": dict(inner)}

    def _format(self) -> type[Factors]:
        return FORMATS[self.of]

    def _first(self) -> Factors:
        return self[(0,) * len(self.batch_shape)]

    def check(self) -> None:
        check_together(self.parts, "Batch")
        sizes = self.batch_shape
        if not sizes or any(isinstance(b, bool) or not isinstance(b, int) or b < 1 for b in sizes):
            raise ArgumentError(
                f"Batch: batch_shape={sizes!r} must be one or more ints of at least 1"
            )
        for name, t in self.parts.items():
            if tuple(t.shape[: len(sizes)]) != sizes:
                raise ShapeError(
                    f"Batch: {name} is {tuple(t.shape)}; its first dimensions must be the batch "
                    f"{sizes}"
                )
        self._first().check()

    def _dense(self) -> Tensor:
        places = product(*map(range, self.batch_shape))
        return torch.stack([self[place]._dense() for place in places]).reshape(self.shape)
