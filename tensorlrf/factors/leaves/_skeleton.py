"""A matrix told by some of its own columns and rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors._base import Factors
from tensorlrf.factors.arrays import PLACES, check_together, why_not_dense

PARTS = ("columns", "core", "rows", "column_indices", "row_indices")
INDICES = PARTS[3:]


@dataclass(frozen=True, eq=False, repr=False)
class Skeleton(Factors):
    """A matrix W as `columns @ core @ rows`, where columns, rows or both are its own.

    CUR has columns and rows of W and a core between them. An interpolative decomposition has no
    core: columns W[:, J] and coefficients `rows`, with the identity in the columns J; or rows
    W[I, :] and coefficients `columns`, with the identity in the rows I. Without `rows` the whole is
    symmetric, and its rows are the columns transposed.

    Parameters
    ----------
    columns : Tensor of shape (m, p)
    core : Tensor of shape (p, q), optional
        The identity where it is None.
    rows : Tensor of shape (q, n), optional
        The transpose of `columns` where it is None.
    column_indices : Tensor of shape (p,), int32, optional
        Which columns of W were picked, J.
    row_indices : Tensor of shape (q,), int32, optional
        Which rows, I.
    dense_shape : tuple of int, optional
        Shape of the whole: its first entry is m, the others multiply to n. (m, n) by default.

    Raises
    ------
    ArgumentError, ShapeError
        Where these do not fit together, and for indices beyond the matrix.

    References
    ----------
    Goreinov, Tyrtyshnikov & Zamarashkin 1997; Cheng, Gimbutas, Martinsson & Rokhlin 2005.

    Examples
    --------
    >>> w = torch.arange(12.0).reshape(3, 4)
    >>> f = tensorlrf.interpolative(w, 2)
    >>> torch.equal(f.columns, w[:, f.column_indices.long()])
    True
    """

    columns: Tensor
    core: Tensor | None = None
    rows: Tensor | None = None
    column_indices: Tensor | None = None
    row_indices: Tensor | None = None
    dense_shape: tuple[int, ...] = ()

    format: ClassVar[str] = "skeleton"
    indices: ClassVar[frozenset[str]] = frozenset(INDICES)

    def __post_init__(self) -> None:
        check_together(self._floats(), "Skeleton")
        m, n = int(self.columns.shape[0]), int(self._last().shape[-1])
        object.__setattr__(self, "dense_shape", tuple(map(int, self.dense_shape or (m, n))))
        self.check()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.dense_shape

    @property
    def rank(self) -> int:
        """The number of columns or of rows, whichever are fewer."""
        return min(int(self.columns.shape[1]), int(self._last().shape[0]))

    def tensors(self) -> dict[str, Tensor]:
        named = {name: getattr(self, name) for name in PARTS}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def meta(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "parts": list(self.tensors())}

    @classmethod
    def _fields(cls, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
        parts = meta["parts"]
        fields = {name: tensors[name] if name in parts else None for name in PARTS}
        return {**fields, "dense_shape": tuple(meta["shape"])}

    def check(self) -> None:
        check_together(self._floats(), "Skeleton")
        sizes = {name: tuple(t.shape) for name, t in self._floats().items()}
        if any(len(size) != 2 for size in sizes.values()):
            raise ShapeError(f"Skeleton: {sizes} must be matrices")
        m, p = sizes["columns"]
        q, n = sizes.get("rows", (p, m))
        if sizes.get("core", (p, p)) != (p, q):
            told = f"core {sizes['core']}" if "core" in sizes else "no core"
            raise ShapeError(
                f"Skeleton: {p} columns, {q} rows and {told}; the core must be ({p}, {q})"
            )
        if not self.shape or self.shape[0] != m or math.prod(self.shape[1:]) != n:
            raise ShapeError(
                f"Skeleton: shape={self.shape} does not hold a {m} x {n} matrix; its first entry "
                f"must be {m} and the others must multiply to {n}"
            )
        for name, count, size in zip(INDICES, (p, q), (n, m), strict=True):
            if (given := getattr(self, name)) is not None:
                self._check_indices(name, given, count, size)

    def _check_indices(self, name: str, given: Any, count: int, size: int) -> None:
        if not isinstance(given, Tensor):
            raise ArgumentError(
                f"Skeleton: {name} is a {type(given).__name__}; pass a torch.Tensor"
            )
        if (unfit := why_not_dense(given)) is not None:
            raise ArgumentError(f"Skeleton: {name} {unfit}")
        if given.dtype != PLACES or given.device != self.device:
            raise ArgumentError(
                f"Skeleton: {name} is {given.dtype} on {given.device}; it must be {PLACES} on "
                f"{self.device}: bring it there with .to()"
            )
        if tuple(given.shape) != (count,):
            raise ShapeError(f"Skeleton: {name} is {tuple(given.shape)}; there are {count}")
        if given.is_meta or count == 0:
            return
        low, high = map(int, given.aminmax())
        if low < 0 or high >= size:
            raise ArgumentError(
                f"Skeleton: {name} holds {low if low < 0 else high}; they count from 0 to "
                f"{size - 1}"
            )

    def _floats(self) -> dict[str, Tensor]:
        return {name: t for name, t in self.tensors().items() if name not in INDICES}

    def _last(self) -> Tensor:
        """`rows`, told or not."""
        return self.columns.T if self.rows is None else self.rows

    def _dense(self) -> Tensor:
        left = self.columns if self.core is None else self.columns @ self.core
        return (left @ self._last()).reshape(self.shape)
