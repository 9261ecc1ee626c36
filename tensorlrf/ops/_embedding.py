"""Looking up rows of a table that is held as factors."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError
from tensorlrf.factors import CPFactors, Factors, LowRank, TTMatrix, TuckerFactors
from tensorlrf.ops._dense import dense_weight
from tensorlrf.ops._fused import check_layer_path, fused_here
from tensorlrf_kernels.lowrank_embedding import lowrank_embedding
from tensorlrf_kernels.lowrank_embedding.reference import without_gradient
from tensorlrf_kernels.tt_embedding import reference as train
from tensorlrf_kernels.tt_embedding import tt_embedding
from tensorlrf_kernels.tt_embedding.launch import MOST_RANK
from tensorlrf_kernels.tt_linear.reference import merged

EMBEDDING_PATHS = ("dense", "chain", "fused")


def embedding_paths(factors: Factors) -> tuple[str, ...]:
    """The paths by which rows can be looked up in a table of these factors, where they are.

    Parameters
    ----------
    factors : Factors

    Returns
    -------
    tuple of str
        "fused" needs an NVIDIA GPU and Triton.

    Raises
    ------
    UnsupportedError
        For a format that has none.
    ShapeError
        Where the factors do not stand for a table (num_embeddings, embedding_dim).

    Examples
    --------
    >>> tensorlrf.ops.embedding_paths(tensorlrf.svd(torch.rand(100, 16), 4))
    ('dense', 'chain')
    """
    if not isinstance(factors, (LowRank, CPFactors, TuckerFactors, TTMatrix)):
        raise UnsupportedError(
            f"factors is a {type(factors).__name__}, in which no rows are looked up; use LowRank, "
            "CPFactors, TuckerFactors or TTMatrix, or factors.to_dense() with "
            "torch.nn.functional.embedding"
        )
    if len(factors.shape) != 2:
        raise ShapeError(
            f"factors stand for a tensor of shape {factors.shape}; the table of an embedding is "
            "(num_embeddings, embedding_dim)"
        )
    return (*EMBEDDING_PATHS[:2], *fused_here(factors, fuses_embedding))


def fuses_embedding(factors: Factors) -> bool:
    """Whether a kernel looks up rows in such factors, on a GPU."""
    if isinstance(factors, TTMatrix):
        return best_cut(factors) is not None
    return len(table_matrices(factors)) > 1


def check_embedding_path(path: str, factors: Factors) -> None:
    """The path is one that these factors have where they are; else the error says why not."""
    check_layer_path(path, embedding_paths(factors), factors, fuses_embedding)


def table_matrices(factors: Factors) -> list[Tensor]:
    """The matrices whose product is the table (n, d), the first one with its n rows."""
    if isinstance(factors, LowRank):
        return [factors.left, factors.right]
    if isinstance(factors, CPFactors):
        rows, columns = factors.factors
        return [rows, (columns * factors.weights).T]
    assert isinstance(factors, TuckerFactors)
    given = dict(zip(factors.modes, factors.factors, strict=True))
    matrices = [given[0]] if 0 in given else []
    matrices += [factors.core]
    return [*matrices, given[1].T] if 1 in given else matrices


def best_cut(factors: TTMatrix) -> int | None:
    """Before which core the train is cut in two: where its rank is least, so that a row costs
    least; of equal ranks where the halves hold the fewest numbers. None where every rank is above
    MOST_RANK, and for a single core."""
    best, least = None, (MOST_RANK + 1, 0)
    for k in range(1, len(factors.cores)):  # torch.compile traces no min(key=...)
        size = (factors.rank[k], sum(half_sizes(factors, k)))
        if size[0] <= MOST_RANK and size < least:
            best, least = k, size
    return best


def half_sizes(factors: TTMatrix, cut: int) -> tuple[int, int]:
    """Numbers in the cores before the cut, merged into one, and in those behind it."""
    halves = [1, 1]
    for k, (n, d) in enumerate(zip(factors.row_sizes, factors.column_sizes, strict=True)):
        halves[k >= cut] *= n * d
    return halves[0] * factors.rank[cut], halves[1] * factors.rank[cut]


def merges(factors: TTMatrix, cut: int, rows: int) -> bool:
    """Whether the halves are merged to look up so many rows: those of two cores are there as they
    stand, others must hold fewer numbers than what is looked up."""
    return len(factors.cores) == 2 or sum(half_sizes(factors, cut)) < rows * factors.shape[1]


def run_embedding(
    path: str, factors: Factors, indices: Tensor, padding_idx: int | None = None
) -> Tensor:
    """The `embedding` by a given path, without checks: for layers that made theirs before.

    Parameters
    ----------
    path : str
    factors : Factors
    indices : Tensor of shape (...)
    padding_idx : int, optional
        Counted from the start.

    Returns
    -------
    Tensor of shape (..., d)

    Examples
    --------
    >>> f = tensorlrf.svd(torch.rand(100, 16), 4)
    >>> tensorlrf.ops.run_embedding("chain", f, torch.tensor([3, 99])).shape
    torch.Size([2, 16])
    """
    if path == "dense":
        return F.embedding(indices, dense_weight(factors), padding_idx)
    if isinstance(factors, TTMatrix):
        cut = best_cut(factors)
        n, d = factors.shape
        if path == "fused" and cut is not None and merges(factors, cut, indices.numel()):
            first, second = (
                merged(factors.cores[:cut])[0],
                merged(factors.cores[cut:])[..., 0],
            )
            return tt_embedding(indices, first, second, (n, d), padding_idx)
        return train.tt_embedding(indices, factors.cores, (n, d), padding_idx)
    rows, *others = table_matrices(factors)
    if path == "fused":
        return lowrank_embedding(indices, rows, reduce(torch.matmul, others), padding_idx)
    y = F.embedding(indices, rows)
    for matrix in others:
        y = y @ matrix
    return without_gradient(y, indices, padding_idx)


def check_padding(padding_idx: int | None, rows: int) -> int | None:
    """`padding_idx` counted from the start. Raises ArgumentError where it is no row."""
    if padding_idx is None:
        return None
    whole = isinstance(padding_idx, int) and not isinstance(padding_idx, bool)
    if not whole or not -rows <= padding_idx < rows:
        raise ArgumentError(
            f"padding_idx={padding_idx!r} must be None or a row of the table, from {-rows} to "
            f"{rows - 1}"
        )
    return padding_idx % rows
