"""The linear layer on factors."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from tensorlrf.errors import ShapeError, UnsupportedError
from tensorlrf.factors import CPFactors, Factors, LowRank, TuckerFactors
from tensorlrf.ops._dense import dense_weight
from tensorlrf.ops._fused import fused_here
from tensorlrf.ops.structured import form_of
from tensorlrf_kernels.lowrank_linear import lowrank_linear
from tensorlrf_kernels.lowrank_linear import reference as chain

LINEAR_PATHS = ("dense", "chain", "fused")


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
    form = form_of(factors)
    if form is None and not isinstance(factors, (LowRank, CPFactors, TuckerFactors)):
        raise UnsupportedError(
            f"factors is a {type(factors).__name__}, on which no linear layer runs; use "
            "factors.to_dense() with torch.nn.functional.linear"
        )
    if len(factors.shape) != 2:
        raise ShapeError(
            f"factors stand for a tensor of shape {factors.shape}; the weight of a linear layer is "
            "(out_features, in_features)"
        )
    if form is not None:
        return ("dense", *form.paths(factors), *fused_here(factors))
    return (*LINEAR_PATHS[:2], *fused_here(factors))


def _as_two_matrices(factors: Factors) -> tuple[Tensor, Tensor]:
    """right (r, n) and left (m, r) whose product the factors stand for; a core goes to the side
    that leaves the smaller rank."""
    if isinstance(factors, LowRank):
        return factors.right, factors.left
    if isinstance(factors, CPFactors):
        out_factor, in_factor = factors.factors
        return (in_factor * factors.weights).T, out_factor
    assert isinstance(factors, TuckerFactors)
    core, given = factors.core, dict(zip(factors.modes, factors.factors, strict=True))
    if 1 not in given:
        return core, given[0]
    if 0 not in given:
        return given[1].T, core
    if core.shape[1] <= core.shape[0]:
        return given[1].T, given[0] @ core
    return core @ given[1].T, given[0]


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
        return F.linear(x, dense_weight(factors), bias)
    form = form_of(factors)
    if form is not None and path == "fused" and form.fused is not None:
        return form.fused(factors, x, bias)
    if form is not None:
        y: Tensor = form.run(path, factors, x)
        return y if bias is None else y + bias.to(y.dtype)  # autocast has lowered y
    if path == "fused":
        return lowrank_linear(x, *_as_two_matrices(factors), bias)
    if not isinstance(factors, TuckerFactors):
        return chain.lowrank_linear(x, *_as_two_matrices(factors), bias)
    given = dict(zip(factors.modes, factors.factors, strict=True))
    if 1 in given:
        x = F.linear(x, given[1].T)  # (..., n) -> (..., r_1)
    if 0 in given:
        return chain.lowrank_linear(x, factors.core, given[0], bias)
    return F.linear(x, factors.core, bias)
