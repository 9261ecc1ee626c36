"""Truncated SVD of a sparse matrix, by products with its nonzeros."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition.linalg._gram import scale_of
from tensorlrf.decomposition.linalg._truncation import SEED
from tensorlrf.decomposition.linalg.sparse._input import as_sparse, one_int
from tensorlrf.decomposition.linalg.sparse._leading import leading_triples, unfolded
from tensorlrf.decomposition.linalg.sparse._nonzeros import Nonzeros
from tensorlrf.decomposition.random_state import generator
from tensorlrf.decomposition.rank import check_rank_or_error, matrix_rank
from tensorlrf.errors import ShapeError, UnsupportedError
from tensorlrf.factors import LowRank, SparseTensor

_MOST = 2**62
"""Bytes of a side, beyond which there is no such memory."""


def fit_sparse(
    given: Any,
    rank: Any,
    solver: str,
    random_state: int | torch.Generator | None,
    measure: bool,
) -> Fit[LowRank]:
    """Of a sparse tensor as a user gives it: the nearest matrix of a rank.

    Raises ArgumentError and its kinds for what is no such tensor or rank, UnsupportedError for
    another solver.
    """
    if solver not in ("auto", "krylov"):
        raise UnsupportedError(
            f"solver={solver!r} does not take a sparse tensor, of which products are made by "
            "'krylov' alone; leave solver='auto', or pass .to_dense()"
        )
    tensor = as_sparse(given)
    count, _ = check_rank_or_error(one_int(rank), None)
    r = matrix_rank(count or 0, tensor.shape[0], math.prod(tensor.shape[1:]))
    draws = generator(SEED if random_state is None else random_state, tensor.device)
    return _of_rank(tensor, r, draws, measure)


def _of_rank(
    tensor: SparseTensor, rank: int, draws: torch.Generator, measure: bool
) -> Fit[LowRank]:
    """As a matrix (n_0, product of the others). The sides have rows and columns of zeros
    where the tensor holds nothing."""
    m, n = tensor.shape[0], math.prod(tensor.shape[1:])
    if (m + n) * rank * 8 > _MOST:
        raise ShapeError(
            f"tensor has shape {tensor.shape}, and so a side of {rank} x {max(m, n):.3g} numbers, "
            "which no memory holds; cp and tucker keep the modes apart"
        )
    scale = scale_of(tensor.values) if tensor.nnz else 1.0
    matrix = unfolded(Nonzeros.of(tensor, torch.float64, scale=scale), 0)
    r = min(rank, *matrix.sizes) if len(matrix.values) else 0
    left, right = (matrix.values.new_zeros(size, 0) for size in matrix.sizes)
    if r:
        left, values, right = leading_triples(matrix, r, draws)
        left, right = left * values.sqrt(), right * values.sqrt()
    root = math.sqrt(scale)  # a power of two

    def side(rows: Tensor, mode: int) -> Tensor:
        filled = pad(rows * root, (0, rank - r)).to(tensor.dtype)
        return matrix.spread(filled, mode)

    factors = LowRank(side(left, 0), side(right, 1).T.contiguous(), tensor.shape)
    loss = _error(matrix, factors) if measure else math.nan
    return Fit(factors, (loss,), True, f"rank {rank} as asked, krylov on the nonzeros")


def _error(matrix: Nonzeros, factors: LowRank) -> float:
    """The true relative error of factors as they are."""
    left, right = matrix.picked(factors.left, 0), matrix.picked(factors.right.T, 1)
    size = 1 / matrix.scale
    weights = torch.full((factors.rank,), size, dtype=torch.float64, device=factors.device)
    return matrix.rel_error(float(matrix.square_residual([left, right], weights)))
