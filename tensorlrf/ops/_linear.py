"""The linear layer on factors."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from tensorlrf.errors import ShapeError, UnsupportedError
from tensorlrf.factors import CPFactors, Factors, LowRank, TuckerFactors
from tensorlrf.ops._check import check_bias, check_input, check_path
from tensorlrf.ops._dense import dense_weight
from tensorlrf_kernels.lowrank_linear import lowrank_linear


def linear_paths(factors: Factors) -> tuple[str, ...]:
    """The paths by which a linear layer can run on these factors.

    Raises UnsupportedError for a format that has none, ShapeError where the factors do not stand
    for a weight (out_features, in_features).
    """
    if not isinstance(factors, (LowRank, CPFactors, TuckerFactors)):
        raise UnsupportedError(
            f"factors is a {type(factors).__name__}; a linear layer runs on LowRank, CPFactors and "
            "TuckerFactors, so use factors.to_dense() with torch.nn.functional.linear"
        )
    if len(factors.shape) != 2:
        raise ShapeError(
            f"factors stand for a tensor of shape {factors.shape}; the weight of a linear layer is "
            "(out_features, in_features)"
        )
    return ("dense", "chain")


def run_linear(path: str, factors: Factors, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` by a given path, without checks: for layers that made theirs when they were built.

    x (..., n), bias (m,); returns (..., m).
    """
    if path == "dense":
        return F.linear(x, dense_weight(factors), bias)
    if isinstance(factors, LowRank):
        return lowrank_linear(x, factors.right, factors.left, bias)
    if isinstance(factors, CPFactors):
        out_factor, in_factor = factors.factors
        return lowrank_linear(x, (in_factor * factors.weights).T, out_factor, bias)
    assert isinstance(factors, TuckerFactors)
    given = dict(zip(factors.modes, factors.factors, strict=True))
    if 1 in given:
        x = F.linear(x, given[1].T)  # (..., n) -> (..., r_1)
    if 0 in given:
        return lowrank_linear(x, factors.core, given[0], bias)
    return F.linear(x, factors.core, bias)


def linear(
    x: Tensor, factors: Factors, bias: Tensor | None = None, *, path: str | None = None
) -> Tensor:
    """x @ W^T + bias for the weight W (m, n) that `factors` stand for.

    x        (..., n), any number of leading dimensions
    factors  LowRank, CPFactors or TuckerFactors of shape (m, n)
    bias     (m,)
    path     "dense" (rebuild W) or "chain" (one product a factor); by default the one that the
             cost model expects to be faster for this number of rows

    Returns (..., m). Differentiable in x, bias and every tensor of the factors.
    Raises ShapeError, ArgumentError or UnsupportedError where these do not fit together.
    """
    paths = linear_paths(factors)
    m, n = factors.shape
    check_input(x, factors)
    if x.ndim == 0 or x.shape[-1] != n:
        raise ShapeError(
            f"x has shape {tuple(x.shape)}; its last dimension must be in_features = {n}"
        )
    check_bias(bias, m, factors)
    if path is None:
        from tensorlrf.ops._paths import best_path, bucket
        from tensorlrf.ops._profile import nominal_profile

        rows, profile = bucket(x.shape[:-1].numel()), nominal_profile(x.device)
        path = best_path(factors, rows, profile=profile)
    else:
        check_path(path, paths)
    return run_linear(path, factors, x, bias)
