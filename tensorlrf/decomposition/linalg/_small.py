"""Small matrices beside a large one: in float64 on the host, wherever the large one is.

numpy begins a step in a fraction of the time that torch does. It may take threads of its own where
there is more to do; there torch serves, which keeps to those of the problem, and where LAPACK gives
up, for which it has other ways.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tensorlrf.decomposition.linalg._gram import descending_eigh, thin_svd

Small = npt.NDArray[np.float64]

LIGHT = 64**3
"""Multiply-adds, m n min(m, n), below which numpy's library takes one thread."""


def on_host(matrix: Tensor) -> Small:
    """A copy."""
    copy: Small = matrix.detach().cpu().numpy().astype(np.float64)
    return copy


def beside(matrix: Small, like: Tensor) -> Tensor:
    """In the dtype and on the device of `like`."""
    return torch.from_numpy(matrix).to(like)


def short_gram(matrix: Small) -> Small:
    """The Gram of the rows or of the columns, whichever are fewer."""
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    if _light(short):
        gram: Small = short @ short.T
        return gram
    wide = torch.from_numpy(short)
    return _array(wide @ wide.T)


def eigenvalues(gram: Small) -> Small:
    """Descending, not below zero, as a positive semidefinite matrix has them."""
    if _light(gram):
        ascending: npt.NDArray[Any] = np.linalg.eigvalsh(gram)
    else:
        ascending = _array(torch.linalg.eigvalsh(torch.from_numpy(gram)))
    values: Small = np.maximum(ascending[::-1], 0)
    return values


def leading(gram: Small, r: int) -> Small:
    """Eigenvectors (n, r) of the r largest eigenvalues, descending, of a positive semidefinite
    matrix."""
    if _light(gram):
        with suppress(np.linalg.LinAlgError):
            vectors: Small = np.linalg.eigh(gram)[1]
            return vectors[:, : -r - 1 : -1].copy()  # torch has no negative strides
    return _array(descending_eigh(torch.from_numpy(gram))[1][:, :r])


def truncated(matrix: Small, r: int, *, roughly: bool) -> tuple[Small, Small, Small]:
    """U (m, r), S (r,) descending, V^T (r, n).

    `roughly`, by a Gram where that is the shorter way: small singular values are rounded as 1e-8
    of the largest one is.
    """
    if _light(matrix):
        with suppress(np.linalg.LinAlgError):
            left, values, right = np.linalg.svd(matrix, full_matrices=False)
            return left[:, :r], values[:r], right[:r]
    whole = torch.from_numpy(matrix)
    if not roughly:
        left, values, right = map(_array, thin_svd(whole))
        return left[:, :r], values[:r], right[:r]
    if len(matrix) > matrix.shape[1]:
        left, values, right = truncated(matrix.T, r, roughly=True)
        return right.T, values, left.T
    basis = torch.from_numpy(leading(short_gram(matrix), r))
    long = basis.T @ whole  # S V^T, rows of length s_j
    sizes = torch.linalg.vector_norm(long, dim=1)
    long /= torch.where(sizes > 0, sizes, 1)[:, None]
    return _array(basis), _array(sizes), _array(long)


def _light(matrix: Small) -> bool:
    """Whether numpy serves."""
    return bool(matrix.size * min(matrix.shape) < LIGHT)


def _array(matrix: Tensor) -> Small:
    shared: Small = matrix.numpy()
    return shared
