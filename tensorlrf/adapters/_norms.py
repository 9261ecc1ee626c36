"""Norms of the rows of a changed weight, which is not formed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import LowRank
from tensorlrf.factors.arrays import as_dense
from tensorlrf.factors.kinds import check_format, two_matrices


def row_norms(weight: Any, term: LowRank) -> Tensor:
    """The Euclidean norm of each row of W + s B A, without the product.

    With `term` as s B (m, r) and A (r, n) a row has the square ``|w|^2 + 2 (s b) (A w) +
    (s b) A A^T (s b)^T``: W A^T, and a Gram of r by r, m n r multiply-adds. Of W = left right it
    takes (m + n) (k + r)^2. Where a row cancels to less than 1e-6 of itself its norm is taken of
    the row.

    Parameters
    ----------
    weight : Tensor or array of shape (m, n), or LowRank
        W; a convolution is the matrix (O, I kh kw).
    term : LowRank
        The change, of the same shape.

    Returns
    -------
    Tensor of shape (m,)
        In float32 at least, computed in float64.

    Raises
    ------
    ShapeError
        Where the shapes differ.

    References
    ----------
    Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", section 4.1.

    Examples
    --------
    >>> W, change = torch.randn(6, 5), tensorlrf.LowRank(torch.randn(6, 2), torch.randn(2, 5))
    >>> norms = tensorlrf.adapters.row_norms(W, change)
    >>> torch.allclose(norms, (W + change.to_dense()).norm(dim=1), atol=1e-5)
    True
    """
    check_format(term, (LowRank,), "term", "give the change as a LowRank")
    sides = two_matrices(weight)
    own = as_weight(weight) if sides is None else weight
    if tuple(own.shape) != tuple(term.shape):
        raise ShapeError(f"weight has shape {tuple(own.shape)}, and term {tuple(term.shape)}")
    dtype = torch.promote_types(own.dtype, torch.float32)
    left, right = term.left.to(torch.float64), term.right.to(torch.float64)
    if sides is not None:
        left = torch.cat([sides[0].to(torch.float64), left], 1)  # (m, k + r)
        right = torch.cat([sides[1].to(torch.float64), right])
        small = torch.linalg.qr(right.T, mode="r").R  # (k + r, k + r), and no square of it
        norms: Tensor = torch.linalg.vector_norm(left @ small.T, dim=1)
        return norms.to(dtype)
    matrix: Tensor = own.to(torch.float64).reshape(len(own), -1)
    alone = matrix.square().sum(1)
    both = (left * (matrix @ right.T)).sum(1)
    change = (left @ torch.linalg.qr(right.T, mode="r").R.T).square().sum(1)
    squares: Tensor = alone + 2 * both + change
    gone = (squares < 1e-6 * (alone + change)).nonzero()[:, 0]  # what cancels is rounding
    squares[gone] = (matrix[gone] + left[gone] @ right).square().sum(1)
    return squares.clamp(min=0.0).sqrt().to(dtype)


def as_weight(value: Any) -> Tensor:
    """A weight, detached. Raises ArgumentError for what is no dense tensor of finite floats."""
    weight = as_dense(value, "weight").detach()
    if not weight.is_floating_point():
        raise ArgumentError(f"weight has the dtype {weight.dtype}; give floats, such as .float()")
    if not bool(weight.isfinite().all()):
        raise ArgumentError("weight contains NaN or Inf; find where they came from")
    return weight
