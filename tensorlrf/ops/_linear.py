"""The linear layer on factors."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from tensorlrf.errors import ShapeError, UnsupportedError
from tensorlrf.factors import CPFactors, Factors, LowRank, TuckerFactors
from tensorlrf.ops._check import check_bias, check_input
from tensorlrf.ops._dense import dense_weight
from tensorlrf.ops._fused import check_layer_path, fused_here
from tensorlrf.ops.structured import form_of
from tensorlrf_kernels.lowrank_linear import lowrank_linear
from tensorlrf_kernels.lowrank_linear import reference as chain

LINEAR_PATHS = ("dense", "chain", "fused")


def linear_paths(factors: Factors) -> tuple[str, ...]:
    """The paths by which a linear layer can run on these factors, where they are: "fused" needs
    an NVIDIA GPU and Triton.

    Raises UnsupportedError for a format that has none, ShapeError where the factors do not stand
    for a weight (out_features, in_features).
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
    """`linear` by a given path, without checks: for layers that made theirs when they were built.

    x (..., n), bias (m,); returns (..., m).
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


def linear(
    x: Tensor, factors: Factors, bias: Tensor | None = None, *, path: str | None = None
) -> Tensor:
    """x @ W^T + bias for the weight W (m, n) that `factors` stand for.

    x        (..., n), any number of leading dimensions
    factors  of shape (m, n): LowRank, CPFactors, TuckerFactors, KroneckerSum, TTMatrix, TRFactors,
             BlockLowRank, MonarchFactors or BlastFactors
    bias     (m,)
    path     "dense" (rebuild W), "chain" (one product a factor); for a TTMatrix of more than two
             cores "fold" (cut in the middle, a Kronecker sum), for TRFactors (each side merged into
             a matrix), for even blocks (all ranks padded, two batched products); for a LowRank and
             the like on an NVIDIA GPU "fused" (one kernel, the intermediate on chip); by default
             the one that the cost model expects to be fastest for this number of rows

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
        check_layer_path(path, paths, factors)
    return run_linear(path, factors, x, bias)
