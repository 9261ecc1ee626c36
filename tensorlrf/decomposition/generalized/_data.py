"""What generalised CP is fitted to: all entries of a tensor, some of them, or its nonzeros."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._input import (
    as_tensor,
    as_tensor_and_largest,
    check_dtype,
    working_dtype,
)
from tensorlrf.decomposition.generalized._dense import (
    DenseObjective,
    DenseRows,
    Objective,
    Rows,
)
from tensorlrf.decomposition.generalized._entries import HIDE, MEND, check_data
from tensorlrf.decomposition.generalized._loss import KnownLoss, Loss, Units
from tensorlrf.decomposition.generalized._nonzeros import (
    Nonzeros,
    SparseObjective,
    SparseRows,
    index_at,
)
from tensorlrf.decomposition.linalg._gram import scale_of
from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError
from tensorlrf.factors import SparseTensor
from tensorlrf.factors.arrays import as_dense
from tensorlrf.factors.kinds import is_sparse

LARGEST = torch.iinfo(torch.int64).max

AFFORDABLE = 1 << 26
"""Entries of a sparse tensor that are all looked at, some rows at a time."""


@dataclass(frozen=True)
class Data:
    """A tensor over `scale`, in the working dtype.

    dense, weights  of one shape, weights None where all count alike; or
    sparse          the nonzeros
    dtype           of the user's tensor
    """

    dense: Tensor | None
    weights: Tensor | None
    sparse: Nonzeros | None
    scale: float
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        given = self.dense if self.sparse is None else self.sparse
        assert given is not None
        return tuple(given.shape)

    @property
    def values(self) -> Tensor:
        """Entries that are stored, in their dtype and on their device."""
        found = self.dense if self.sparse is None else self.sparse.values
        assert found is not None
        return found

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def rows(self) -> Rows:
        if self.sparse is not None:
            return SparseRows(self.sparse)
        return DenseRows(self.values, self.weights)

    def objective(self, loss: Loss) -> Objective | None:
        """The exact loss; None where it would take all entries of a large sparse tensor."""
        if self.sparse is not None:
            if isinstance(loss, KnownLoss) and loss.base is not None:
                return SparseObjective(self.sparse, loss)
            if self.size > AFFORDABLE:
                return None
        return DenseObjective(self.rows(), loss, self.weights is None)

    def units(self) -> Units:
        if self.weights is None:
            return Units(self.scale, float(self.size), float(self.values.sum(dtype=torch.float64)))
        data = torch.dot(self.values.flatten().double(), self.weights.flatten().double())
        return Units(self.scale, float(self.weights.sum(dtype=torch.float64)), float(data))

    def mean(self) -> float:
        units = self.units()
        return units.data / units.weight

    def norm(self) -> float:
        """Of the entries, each times the root of its weight."""
        values = self.values if self.weights is None else self.values * self.weights.sqrt()
        return float(torch.linalg.vector_norm(values, dtype=torch.float64))


def data_of(
    tensor: Any, mask: Any, weights: Any, loss: Loss, remedy: str | None = None
) -> tuple[Data, Loss]:
    """What a user gives, dense or sparse, checked, and the loss in its unit; `remedy` for entries
    that the loss is not for, where it is another than hiding them or choosing another loss.

    Raises what `dense_data` and `sparse_data` do, and UnsupportedError for a mask or weights of a
    sparse tensor.
    """
    if not is_sparse(tensor):
        return dense_data(tensor, mask, weights, loss, remedy or HIDE)
    for name, given in (("mask", mask), ("weights", weights)):
        if given is not None:
            raise UnsupportedError(
                f"{name}= is not served for sparse tensors, whose other entries are known to be "
                "zero; pass a dense one"
            )
    return sparse_data(SparseTensor.of(tensor), loss, remedy or MEND)


def sparse_data(tensor: SparseTensor, loss: Loss, remedy: str) -> tuple[Data, Loss]:
    """The nonzeros, checked, and the loss in their unit.

    Raises ArgumentError for NaN, Inf and entries that the loss is not for, and ShapeError for fewer
    than two modes and more entries than can be counted.
    """
    shape = tensor.shape
    if len(shape) < 2:
        raise ShapeError(f"tensor has shape {shape}; at least 2 modes are needed")
    if math.prod(shape) > LARGEST:
        raise ShapeError(f"tensor has shape {shape}, of more than 2^63 entries; leave out a mode")
    dtype = tensor.dtype
    check_dtype(dtype, "tensor")
    values = tensor.values.detach().to(working_dtype(dtype))
    indices = tensor.coordinates.long()
    if not bool(values.isfinite().all()):
        kind = "NaN" if bool(values.isnan().any()) else "Inf"
        raise ArgumentError(f"tensor contains {kind}; clean it first (torch.nan_to_num)")

    def index_of(place: int) -> tuple[int, ...]:
        return tuple(indices[:, place].tolist())

    check_data(loss, values, index_of, remedy)
    data = Nonzeros(shape, indices, values)
    if data.zeros:
        # The first that is not stored, if the loss is not for zero.
        check_data(loss, values.new_zeros(1), lambda _: data.first_zero(), remedy)
    largest = float(values.abs().max()) if len(values) else 0.0
    scale, loss = unit_of(values, largest, loss)
    over = values if scale == 1 else values / scale
    return Data(None, None, Nonzeros(shape, indices, over), scale, dtype), loss


def dense_data(tensor: Any, mask: Any, weights: Any, loss: Loss, remedy: str) -> tuple[Data, Loss]:
    """A tensor in memory, checked, and the loss in its unit.

    Raises what `as_tensor` does, and ArgumentError or ShapeError for a mask or weights that do not
    fit, and for an entry that the loss is not for.
    """
    given = as_dense(tensor, "tensor")
    seen = None if mask is None else _mask(mask, given)
    if seen is not None:
        # What is hidden may be NaN; and a loss need not be finite at any number but the data.
        given = torch.where(seen, given.detach(), given.detach()[tuple(seen.nonzero()[0])])
    checked, largest = as_tensor_and_largest(given)
    dtype, work = checked.dtype, working_dtype(checked.dtype)
    heavy = None if weights is None else _weights(weights, checked).to(work)
    if seen is not None:
        heavy = seen.to(work) if heavy is None else heavy * seen
    if heavy is not None:
        _refuse_hidden_slices(heavy, "mask" if weights is None else "weights")
    values = checked.detach().to(work)

    check_data(loss, values.reshape(-1), lambda place: index_at(place, values.shape), remedy)
    scale, loss = unit_of(values, largest, loss)
    over = values if scale == 1 else values / scale
    return Data(over.contiguous(), heavy, None, scale, dtype), loss


def unit_of(values: Tensor, largest: float, loss: Loss) -> tuple[float, Loss]:
    """What the values are to be divided by, and the loss of what is left."""
    divided: Callable[[float], Loss] | None = getattr(loss, "divided", None)
    scale = 1.0 if divided is None else scale_of(values, largest)
    return scale, loss if divided is None or scale == 1 else divided(scale)


def _mask(mask: Any, tensor: Tensor) -> Tensor:
    seen = as_dense(mask, "mask")
    if seen.dtype != torch.bool:
        raise ArgumentError(
            f"mask has dtype {seen.dtype}; it must be bool, True where an entry is known, or pass "
            "weights="
        )
    if seen.shape != tensor.shape:
        raise ShapeError(
            f"mask has shape {tuple(seen.shape)}, the tensor {tuple(tensor.shape)}; they must agree"
        )
    if not bool(seen.any()):
        raise ArgumentError("mask hides every entry; it must be True where an entry is known")
    return seen.to(tensor.device)


def _weights(weights: Any, tensor: Tensor) -> Tensor:
    given = as_tensor(weights, "weights")
    if given.shape != tensor.shape:
        raise ShapeError(
            f"weights have shape {tuple(given.shape)}, the tensor {tuple(tensor.shape)}; they must "
            "agree"
        )
    odd = (given < 0).nonzero()
    if len(odd):
        at = tuple(odd[0].tolist())
        raise ArgumentError(
            f"weights[{', '.join(map(str, at))}] is {float(given[at]):g}; weights must not be "
            "negative, zero hides an entry"
        )
    return given.detach().to(tensor.device)


def _refuse_hidden_slices(weights: Tensor, name: str) -> None:
    for mode in range(weights.ndim):
        seen = (weights != 0).movedim(mode, 0).flatten(1).any(1)
        hidden = (~seen).nonzero()
        if len(hidden):
            raise ArgumentError(
                f"{name} leaves nothing of slice {int(hidden[0])} of mode {mode}, of which no "
                "factor can be told; leave the slice out of the tensor"
            )
