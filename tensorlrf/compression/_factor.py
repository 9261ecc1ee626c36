"""One layer: its ladder of ranks, its factors, its errors, its row in the report."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tensorlrf.compression._calibrate import Seen, Trace, check_moments
from tensorlrf.compression._correction import corrected, target_error
from tensorlrf.compression._ranks import (
    Ladder,
    LayerRank,
    cp_ladder,
    matrix_ladder,
    tucker_ladder,
)
from tensorlrf.compression._report import LayerReport
from tensorlrf.compression._survey import Found, Layer, kind_of, own_numbers
from tensorlrf.decomposition import cp, svd, tucker
from tensorlrf.factors import Factors
from tensorlrf.nn import FactoredConv2d, FactoredLinear
from tensorlrf.ops import Positions, conv2d_cost, linear_cost

METHODS = ("svd", "tucker", "cp")


@dataclass(frozen=True)
class Factored:
    """Factors of one weight, and how far they are from it.

    weight_error   relative Frobenius error
    output_error   relative error of the outputs on these inputs, against the target; None where
                   there were none
    samples        how many inputs that metric is made of
    data_aware     whether it took part in the fit
    """

    factors: Factors
    weight_error: float
    output_error: float | None = None
    samples: int | None = None
    data_aware: bool = False


def ladder_of(layer: Layer, method: str, rank_shares: tuple[float, float]) -> Ladder:
    """The ranks that `method` can give the layer. A matrix has one format: CP and Tucker of a
    matrix are its SVD."""
    shape = tuple(layer.weight.shape)
    if len(shape) == 2 or method == "svd":
        return matrix_ladder(shape[0], math.prod(shape[1:]))
    return cp_ladder(shape) if method == "cp" else tucker_ladder(shape, rank_shares)


def factor(
    name: str,
    weight: Tensor,
    method: str,
    rank: LayerRank,
    seen: Seen | None,
    random_state: int | torch.Generator | None,
) -> Factored:
    """Factors of the weight, fitted to what was seen of its inputs where the method can.

    Raises ArgumentError, naming the layer, where its inputs had NaN or Inf.
    """
    weight = weight.detach()
    if seen is None:
        factors = _decompose(weight, method, rank, None, random_state)
        return Factored(factors, factors.rel_error(weight))
    gram = seen.moments.gram()
    check_moments(name, gram)
    lag = None if seen.lag is None else seen.lag.lag()
    # Inputs that are all zero say nothing about the weight.
    known = bool(gram.diagonal().any())
    aware = known and takes_metric(weight, method)
    wanted = weight
    if aware and lag is not None:
        wanted = corrected(weight, gram, lag)
    factors = _decompose(wanted, method, rank, gram if aware else None, random_state)
    if not known:
        error = None
    elif lag is None:
        error = output_error(weight, factors, gram)
    else:
        error = target_error(weight, factors.to_dense(), gram, lag)
    return Factored(factors, factors.rel_error(weight), error, seen.moments.count, data_aware=aware)


def takes_metric(weight: Tensor, method: str) -> bool:
    """Whether the method can be fitted to inputs: CP of a conv cannot yet."""
    return weight.ndim == 2 or method != "cp"


def _decompose(
    weight: Tensor,
    method: str,
    rank: LayerRank,
    gram: Tensor | None,
    random_state: int | torch.Generator | None,
) -> Factors:
    if isinstance(rank, tuple):
        return tucker(weight, rank, modes=(0, 1), gram=gram, random_state=random_state)
    if takes_metric(weight, method):
        return svd(weight, rank, gram=gram, random_state=random_state)
    return cp(weight, rank, random_state=random_state)


def output_error(weight: Tensor, factors: Factors, gram: Tensor) -> float:
    """sqrt(tr(D G D^T) / tr(W G W^T)) for D = W - factors, in float64."""
    matrix = weight.reshape(weight.shape[0], -1).to(torch.float64)
    dense = factors.to_dense().reshape(matrix.shape).to(torch.float64)
    lost = _energy(matrix - dense, gram)
    whole = _energy(matrix, gram)
    return math.sqrt(lost / whole) if whole > 0 else 0.0


def _energy(matrix: Tensor, gram: Tensor) -> float:
    return max(0.0, float((matrix @ gram * matrix).sum()))


def factored_layer(factors: Factors, like: Layer) -> FactoredLinear | FactoredConv2d:
    """The layer that runs on the factors in place of `like`."""
    if isinstance(like, nn.Linear):
        return FactoredLinear.from_factors(factors, like)
    return FactoredConv2d.from_factors(factors, like)


def row(
    found: Found, done: Factored | None, new: nn.Module | None, trace: Trace | None
) -> LayerReport:
    """The line of the report for a module: factored, or as it was."""
    params, size = own_numbers(found.module)
    reason = found.reason
    if found.eligible:
        weight = found.module.weight
        assert isinstance(weight, Tensor)
        params, size = weight.numel(), weight.numel() * weight.element_size()
        reason = "" if done is not None else "no rank fits into the share"
    kind = kind_of(found.module)
    if done is None:
        return LayerReport(
            found.name, found.places, kind, found.eligible, None, None, reason,
            params, params, size, size,
        )  # fmt: skip
    assert isinstance(new, (FactoredLinear, FactoredConv2d))
    flops, path = _execution(found, done.factors, new, trace)
    rank = done.factors.rank
    return LayerReport(
        name=found.name,
        places=found.places,
        kind=kind,
        eligible=True,
        format=done.factors.format,
        rank=rank,
        reason="",
        params_before=params,
        params_after=done.factors.n_params,
        bytes_before=size,
        bytes_after=done.factors.n_bytes,
        flops_before=None if flops is None else flops[0],
        flops_after=None if flops is None else flops[1],
        weight_error=done.weight_error,
        output_error=done.output_error,
        samples=done.samples,
        data_aware=done.data_aware,
        path=path,
    )


def _execution(
    found: Found, factors: Factors, new: FactoredLinear | FactoredConv2d, trace: Trace | None
) -> tuple[tuple[int, int] | None, str]:
    """((FLOPs before, after), path) on the inputs of the trace; without them the paths alone."""
    inputs = [] if trace is None else trace.inputs.get(found.name, [])
    if not inputs:
        return None, ", ".join(new.path_table.paths)
    before = after = 0
    paths: dict[str, None] = {}
    for shape in inputs:
        if isinstance(new, FactoredLinear):
            rows = math.prod(shape[:-1])
            path = new.path_table.lookup(rows)
            dense = linear_cost(factors, "dense", rows, rebuild=False)
            cost = linear_cost(factors, path, rows, rebuild=False)
        else:
            size = (shape[0] if len(shape) == 4 else 1, *shape[-2:])
            positions = Positions.of(size, new.kernel_size, new.stride, new.padding, new.dilation)
            path = new.path_table.lookup(positions.output)
            dense = conv2d_cost(factors, "dense", positions, rebuild=False)
            cost = conv2d_cost(factors, path, positions, rebuild=False)
        before, after = before + dense.flops, after + cost.flops
        paths[path] = None
    return (before, after), ", ".join(paths)
