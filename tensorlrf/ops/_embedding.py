"""Looking up rows of a table that is held as factors."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from tensorlrf.errors import ShapeError, UnsupportedError
from tensorlrf.factors import Factors
from tensorlrf.ops.forms._form import form_of, formats_with
from tensorlrf.ops.forms.lowering import EMBEDDING, Layer, run_path
from tensorlrf.ops.fused import paths_here


def check_table(factors: Factors) -> None:
    """The factors stand for a table (num_embeddings, embedding_dim) in which rows are looked up."""
    if not form_of(factors).has("embedding"):
        *others, last = formats_with("embedding")
        raise UnsupportedError(
            f"factors is a {type(factors).__name__}, in which no rows are looked up; use "
            f"{', '.join(others)} or {last}, or factors.to_dense() with "
            "torch.nn.functional.embedding"
        )
    if len(factors.shape) != 2:
        raise ShapeError(
            f"factors stand for a tensor of shape {factors.shape}; the table of an embedding is "
            "(num_embeddings, embedding_dim)"
        )


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
    check_table(factors)
    return paths_here(EMBEDDING, factors)


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
        return F.embedding(indices, form_of(factors).dense(factors, False), padding_idx)
    layer = Layer("embedding", padding_idx=padding_idx)
    return run_path(layer, path, factors, indices, None)
