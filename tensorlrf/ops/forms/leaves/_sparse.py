"""A matrix of few entries: a product with what they make up."""

from __future__ import annotations

from torch import Tensor

from tensorlrf.factors import SparseTensor
from tensorlrf.ops.forms._form import Form
from tensorlrf.ops.forms._symbol import leaf
from tensorlrf.ops.forms.stages import Matrix, Paths


class SparseForm(Form[SparseTensor]):
    """Entries are put in their places in the call: a product with a matrix that is dense but for
    its zeros is faster than one that skips them, until nearly all of them are zero."""

    def linear(self, f: SparseTensor) -> Paths:
        m, n = f.shape
        return {"chain": (Matrix(leaf(scattered)(f.values, f.coordinates, m, n)),)}


def scattered(values: Tensor, coordinates: Tensor, m: int, n: int) -> Tensor:
    """The matrix (m, n) whose entries at coordinates (2, nnz) are these values (nnz,)."""
    flat = coordinates[0].long() * n + coordinates[1]
    return values.new_zeros(m * n).scatter(0, flat, values).reshape(m, n)
