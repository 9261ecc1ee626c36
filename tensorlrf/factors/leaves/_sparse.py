"""A tensor of which only some entries are stored, all others being zero."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError
from tensorlrf.factors._base import Factors
from tensorlrf.factors.arrays import check_together, why_not_dense
from tensorlrf.factors.leaves._coordinates import (
    Triple,
    as_values,
    as_whole_numbers,
    check_inside,
    checked_sizes,
    of_any,
    places_dtype,
    sizes_of,
    sorted_unique,
    unsorted_at,
)

FROM = "SparseTensor.from_coordinates(coordinates, values, shape) sorts and casts"


@dataclass(frozen=True, eq=False, repr=False)
class SparseTensor(Factors):
    """A tensor whose nonzero entries are stored with their coordinates (COO).

    It is both what sparse decompositions take and a leaf of sums. The constructor takes coordinates
    as they are stored, sorted and each once; `from_coordinates` and `of` bring others there.

    Parameters
    ----------
    values : Tensor of shape (nnz,)
        Entries; zeros among them stay stored.
    coordinates : Tensor of shape (order, nnz)
        Column j says where `values[j]` stands. int32, or int64 where a mode has 2^31 entries or
        more; columns ascend in lexicographic order, none of them twice.
    dense_shape : tuple of int
        Shape of the whole.

    Raises
    ------
    ArgumentError, ShapeError
        Where these do not fit together; the message names the first coordinate that is outside of
        the shape, or not in its place.

    References
    ----------
    Bader & Kolda 2008, "Efficient MATLAB computations with sparse and factored tensors", section 3.

    Examples
    --------
    >>> f = tensorlrf.SparseTensor.from_coordinates([[2, 0], [1, 3]], [5.0, 7.0], (3, 4))
    >>> f
    SparseTensor(3x4, 2 of 12 entries stored = 16.7%, float32, cpu)
    >>> f.coordinates, f.values
    (tensor([[0, 2],
            [3, 1]], dtype=torch.int32), tensor([7., 5.]))
    """

    values: Tensor
    coordinates: Tensor
    dense_shape: tuple[int, ...]

    format: ClassVar[str] = "sparse"
    indices: ClassVar[frozenset[str]] = frozenset({"coordinates"})

    def __post_init__(self) -> None:
        object.__setattr__(self, "dense_shape", checked_sizes(self.dense_shape))
        self.check()

    # ---- how it is made ---------------------------------------------------------------------

    @classmethod
    def from_coordinates(
        cls,
        coordinates: Any,
        values: Any,
        shape: Sequence[int] | None = None,
        *,
        duplicates: str = "error",
    ) -> SparseTensor:
        """From coordinates in any order.

        Parameters
        ----------
        coordinates : Tensor, array or sequence of shape (order, nnz)
            Whole numbers from 0, one row a mode, as `torch.sparse_coo_tensor` has them; (nnz,
            order), as other packages have them, is `coordinates.T`.
        values : Tensor, array or sequence of shape (nnz,)
            Of floating point; where these are tensors, all are on one device.
        shape : tuple of int, optional
            Of the whole; by default the smallest one that holds all coordinates.
        duplicates : {"error", "sum"}
            Whether values of the same coordinates are an error, or added up.

        Returns
        -------
        SparseTensor
            In the dtype and on the device of `values`.

        Raises
        ------
        ArgumentError
            For coordinates that are no whole numbers, negative, outside of `shape` or, unless
            summed, there twice (the first such one is named), and values that are no floats.
        ShapeError
            For sizes that do not fit each other.

        Examples
        --------
        >>> twice = [[0, 0, 2], [1, 1, 0]]
        >>> tensorlrf.SparseTensor.from_coordinates(twice, [1.0, 2.0, 3.0], duplicates="sum").values
        tensor([3., 3.])
        """
        given = as_values(values)
        places = as_whole_numbers(coordinates, given)
        sizes = sizes_of(places) if shape is None else checked_sizes(shape)
        return cls._of_triple((given, places, sizes), duplicates)

    @classmethod
    def of(cls, tensor: Any, *, duplicates: str = "error") -> SparseTensor:
        """From a sparse or a dense tensor of another kind.

        Parameters
        ----------
        tensor : Tensor, array, scipy.sparse matrix or array, or SparseTensor
            torch's COO, CSR, CSC, BSR and BSC layouts, any sparse layout of scipy, and dense
            tensors, of which the entries that are not zero are kept.
        duplicates : {"error", "sum"}
            Whether entries that are stored twice are an error, or added up.

        Returns
        -------
        SparseTensor
            In the dtype and on the device of `tensor`, cut from the autograd graph.

        Raises
        ------
        ArgumentError, ShapeError
            As `from_coordinates`; for what is no tensor, and for a hybrid one, whose entries are
            dense tensors themselves.

        Examples
        --------
        >>> tensorlrf.SparseTensor.of(torch.eye(3)).to_torch().indices()
        tensor([[0, 1, 2],
                [0, 1, 2]])
        """
        if isinstance(tensor, SparseTensor):
            return tensor
        return cls._of_triple(of_any(tensor), duplicates)

    @classmethod
    def _of_triple(cls, triple: Triple, duplicates: str) -> SparseTensor:
        values, places, sizes = sorted_unique(triple, duplicates)
        return cls._assemble({"values": values, "coordinates": places}, {"shape": list(sizes)})

    # ---- what every format has --------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        return self.dense_shape

    @property
    def nnz(self) -> int:
        """How many entries are stored."""
        return int(self.values.shape[0])

    @property
    def rank(self) -> int:
        """How many entries are stored: each of them is a tensor of rank one."""
        return self.nnz

    def tensors(self) -> dict[str, Tensor]:
        return {"values": self.values, "coordinates": self.coordinates}

    def meta(self) -> dict[str, Any]:
        return {"shape": list(self.dense_shape)}

    @classmethod
    def _fields(cls, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "values": tensors["values"],
            "coordinates": tensors["coordinates"],
            "dense_shape": tuple(meta["shape"]),
        }

    def check(self) -> None:
        check_together({"values": self.values}, "SparseTensor")
        checked_sizes(self.dense_shape)
        places = self.coordinates
        if not isinstance(places, Tensor):
            raise ArgumentError(
                f"SparseTensor: coordinates is a {type(places).__name__}; {FROM} others"
            )
        if (unfit := why_not_dense(places)) is not None:
            raise ArgumentError(f"SparseTensor: coordinates {unfit}")
        wanted = places_dtype(self.dense_shape)
        if places.dtype != wanted or places.device != self.values.device:
            raise ArgumentError(
                f"SparseTensor: coordinates is {places.dtype} on {places.device}; it must be "
                f"{wanted} on {self.values.device}: bring it there with .to()"
            )
        if self.values.ndim != 1:
            raise ShapeError(
                f"SparseTensor: values {tuple(self.values.shape)} must be (nnz,), one number an "
                "entry"
            )
        if tuple(places.shape) != (len(self.dense_shape), self.nnz):
            raise ShapeError(
                f"SparseTensor: coordinates is {tuple(places.shape)}; it must be "
                f"({len(self.dense_shape)}, {self.nnz}), a row for each mode of {self.dense_shape} "
                "and a column for each value"
            )
        if places.is_meta:
            return
        check_inside(places, self.dense_shape, "SparseTensor")
        if (at := unsorted_at(places)) is not None:
            before, here = (tuple(places[:, j].tolist()) for j in (at - 1, at))
            raise ArgumentError(
                f"SparseTensor: coordinates has {here} behind {before}, at {at}; columns ascend, "
                f"each once. {FROM} others"
            )

    def _dense(self) -> Tensor:
        count = math.prod(self.dense_shape)
        if count * self.dtype.itemsize > sys.maxsize:
            raise UnsupportedError(
                f"SparseTensor of shape {self.dense_shape} has {count:.3g} entries, more than fit "
                "any memory; cp, tucker and svd take it as it is"
            )
        flat = self.coordinates[0].long()
        for places, size in zip(self.coordinates[1:], self.dense_shape[1:], strict=True):
            flat = flat * size + places
        whole = self.values.new_zeros(count)
        return whole.scatter(0, flat, self.values).reshape(self.dense_shape)

    # ---- what a sparse tensor has beside that -----------------------------------------------

    def to_torch(self) -> Tensor:
        """The same as a tensor of torch, in the layout `torch.sparse_coo`, coalesced.

        Returns
        -------
        Tensor
            Of shape `shape`; values are shared where torch allows that.
        """
        return torch.sparse_coo_tensor(
            self.coordinates.long(),
            self.values,
            self.dense_shape,
            is_coalesced=True,
            check_invariants=False,
        )

    def permute(self, *modes: int) -> Self:
        """The same with its modes in another order.

        Parameters
        ----------
        modes : int
            Each mode once, as for `torch.Tensor.permute`.

        Returns
        -------
        SparseTensor
            Sorted in the new order.

        Raises
        ------
        ArgumentError
            Where these are not all modes, each once.
        """
        order = len(self.dense_shape)
        if sorted(modes) != list(range(order)):
            raise ArgumentError(f"modes={modes} must hold each number from 0 to {order - 1} once")
        sizes = tuple(self.dense_shape[k] for k in modes)
        values, places, _ = sorted_unique(
            (self.values, self.coordinates[list(modes)], sizes), "sum"
        )
        return self._assemble({"values": values, "coordinates": places}, {"shape": list(sizes)})

    def __repr__(self) -> str:
        shape, count = "x".join(map(str, self.shape)), math.prod(self.shape)
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"{type(self).__name__}({shape}, {self.nnz:,} of {count:,} entries stored = "
            f"{100 * self.nnz / count:.3g}%, {dtype}, {self.device})"
        )
