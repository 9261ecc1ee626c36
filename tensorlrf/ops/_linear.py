"""The linear layer on factors."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from tensorlrf.errors import ShapeError, UnsupportedError
from tensorlrf.factors import Factors
from tensorlrf.ops.forms._form import form_of
from tensorlrf.ops.forms.lowering import LINEAR, run_path
from tensorlrf.ops.fused import paths_here


def check_linear(factors: Factors) -> None:
    """The factors stand for a weight (out_features, in_features), and their form has the layer."""
    if not form_of(factors).has("linear"):
        raise UnsupportedError(
            f"factors is a {type(factors).__name__}, on which no linear layer runs; use "
            "factors.to_dense() with torch.nn.functional.linear"
        )
    if len(factors.shape) != 2:
        raise ShapeError(
            f"factors stand for a tensor of shape {factors.shape}; the weight of a linear layer is "
            "(out_features, in_features)"
        )


def linear_paths(factors: Factors) -> tuple[str, ...]:
    """The paths by which a linear layer can run on these factors, where they are.

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
        Where the factors do not stand for a weight (out_features, in_features).

    Examples
    --------
    >>> tensorlrf.ops.linear_paths(tensorlrf.svd(torch.rand(8, 6), 2))
    ('dense', 'chain')
    """
    check_linear(factors)
    return paths_here(LINEAR, factors)


def run_linear(path: str, factors: Factors, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """The `linear` by a given path, without checks: for layers that made theirs before.

    Parameters
    ----------
    path : str
    factors : Factors
    x : Tensor of shape (..., n)
    bias : Tensor of shape (m,), optional

    Returns
    -------
    Tensor of shape (..., m)

    Examples
    --------
    >>> f = tensorlrf.svd(torch.rand(8, 6), 2)
    >>> tensorlrf.ops.run_linear("chain", f, torch.rand(5, 6)).shape
    torch.Size([5, 8])
    """
    if path == "dense":
        return F.linear(x, form_of(factors).dense(factors, False), bias)
    return run_path(LINEAR, path, factors, x, bias)
