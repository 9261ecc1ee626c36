"""A dictionary of few rows, and sparse codes that combine them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors._base import Factors
from tensorlrf.factors.arrays import check_together, why_not_dense
from tensorlrf.factors.leaves.codes import places_of


@dataclass(frozen=True, eq=False, repr=False)
class Dictionary(Factors):
    """A matrix (m, n) each row of which is a sum of a few atoms times numbers.

    Row i is the sum over j of `values[i, j] * atoms[places[i, j]]`: the rows of a weight are the
    signals, so that a layer multiplies by the atoms first and adds a few of the results for each
    output. A low rank takes all of k atoms for each row; here it takes s of them.

    Parameters
    ----------
    values : Tensor of shape (m, s)
    atoms : Tensor of shape (k, n)
    places : Tensor of shape (m, s)
        Which atoms, those of a row ascending; uint8 for up to 256 atoms, int16 for up to 32,768,
        else int32.
    dense_shape : tuple of int, optional
        (m, n), which the tensors say by themselves.

    Raises
    ------
    ArgumentError, ShapeError
        Where these do not fit together.

    References
    ----------
    Aharon, Elad & Bruckstein 2006, "K-SVD"; Zhussip et al. 2025, "CoSpaDi".

    Examples
    --------
    >>> places = torch.tensor([[0, 2], [1, 2]], dtype=torch.uint8)
    >>> f = tensorlrf.Dictionary(torch.ones(2, 2), torch.eye(3), places)
    >>> f.to_dense(), f.n_bytes
    (tensor([[1., 0., 1.],
            [0., 1., 1.]]), 56)
    """

    values: Tensor
    atoms: Tensor
    places: Tensor
    dense_shape: tuple[int, ...] = ()

    format: ClassVar[str] = "dictionary"

    def __post_init__(self) -> None:
        check_together({"values": self.values, "atoms": self.atoms}, "Dictionary")
        if not self.dense_shape:
            sizes = (*self.values.shape[:1], *self.atoms.shape[-1:])
            object.__setattr__(self, "dense_shape", tuple(map(int, sizes)))
        self.check()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.dense_shape

    @property
    def rank(self) -> tuple[int, int]:
        """How many atoms there are, and how many of them make up a row."""
        return int(self.atoms.shape[0]), int(self.values.shape[1])

    def tensors(self) -> dict[str, Tensor]:
        return {"values": self.values, "atoms": self.atoms, "places": self.places}

    def meta(self) -> dict[str, Any]:
        return {"atoms": int(self.atoms.shape[0]), "shape": list(self.shape)}

    @classmethod
    def index_dtypes(cls, meta: Mapping[str, Any]) -> dict[str, torch.dtype]:
        return {"places": places_of(meta["atoms"])}

    @classmethod
    def _fields(cls, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
        named = {name: tensors[name] for name in ("values", "atoms", "places")}
        return {**named, "dense_shape": tuple(meta["shape"])}

    def check(self) -> None:
        check_together({"values": self.values, "atoms": self.atoms}, "Dictionary")
        if self.values.ndim != 2 or self.atoms.ndim != 2 or not self.atoms.numel():
            raise ShapeError(
                f"Dictionary: values {tuple(self.values.shape)} and atoms "
                f"{tuple(self.atoms.shape)} must be matrices (m, s) and (k, n)"
            )
        sizes = (int(self.values.shape[0]), int(self.atoms.shape[1]))
        if self.shape != sizes:
            raise ShapeError(f"Dictionary: shape={self.shape} is not that of the tensors, {sizes}")
        places, (k, s) = self.places, self.rank
        if not isinstance(places, Tensor):
            raise ArgumentError(f"Dictionary: places is a {type(places).__name__}; pass a tensor")
        if (unfit := why_not_dense(places)) is not None:
            raise ArgumentError(f"Dictionary: places {unfit}")
        wanted = places_of(k)
        if places.dtype != wanted or places.device != self.device:
            raise ArgumentError(
                f"Dictionary: places is {places.dtype} on {places.device}; for {k} atoms it must "
                f"be {wanted} on {self.device}: bring it there with .to()"
            )
        if places.shape != self.values.shape or not 1 <= s <= k:
            raise ShapeError(
                f"Dictionary: places {tuple(places.shape)} and values {tuple(self.values.shape)} "
                f"must both be (m, s), with s from 1 to the {k} atoms"
            )
        if places.is_meta:
            return
        wide = places.long()
        if bool((wide < 0).any() | (wide >= k).any()) or not bool((wide.diff(dim=1) > 0).all()):
            raise ArgumentError(
                f"Dictionary: places must be from 0 to {k - 1}, ascending in each row, none twice"
            )

    def _dense(self) -> Tensor:
        m, (k, _) = self.shape[0], self.rank
        codes = self.values.new_zeros(m, k).scatter(1, self.places.long(), self.values)
        return codes @ self.atoms
