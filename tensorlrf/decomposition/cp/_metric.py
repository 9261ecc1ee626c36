"""The steps of `cp(..., gram=)`: plain starts, descent in the metric, the better of the two."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._fit_or_plain import Judge, Sides, fit_or_plain
from tensorlrf.decomposition._metric import input_metric
from tensorlrf.decomposition.cp._gram import (
    CPMetric,
    Terms,
    best_descent,
    sorted_terms,
    unwhitened,
)
from tensorlrf.decomposition.cp._options import Options
from tensorlrf.decomposition.cp._problem import Problem, pose, spread_weights
from tensorlrf.decomposition.cp._solve import solve
from tensorlrf.errors import ArgumentError, UnsupportedError
from tensorlrf.factors import CPFactors


def check_metric(
    data: tuple[Any, Any], error: float | None, callback: object, differentiable: bool
) -> None:
    """Raises ArgumentError or UnsupportedError for what does not go with gram=."""
    if data[0] is None:
        raise ArgumentError("mean= goes with gram=, the second moments of the same inputs")
    if error is not None:
        raise UnsupportedError(
            "gram= needs rank= here, error= is not served; use svd(weight, error=..., gram=...)"
        )
    if callback is not None:
        raise UnsupportedError(
            "callback= does not go with gram=; the errors of all sweeps are in fit_cp(...).errors"
        )
    if differentiable:
        raise UnsupportedError("gram= with differentiable=True is not served; use svd for that")


def fit_cp_in_metric(
    tensor: Tensor,
    problem: Problem,
    rank: int,
    options: Options,
    data: tuple[Any, Any],
    limits: tuple[int, float | None],
    rng: torch.Generator,
) -> Fit[CPFactors]:
    """CP that serves the outputs; never worse in them than plain CP. `limits`: sweeps and tol."""
    moments = input_metric(*data, tensor[0].numel(), tensor)
    kernel = tensor.detach().to(torch.float64) / problem.scale
    metric = CPMetric(kernel, moments.gram)
    plain = solve(problem, rank, options, rng)
    kept = options.kept(problem)
    precise = replace(problem, scale=1.0, dtype=problem.data.blocks.dtype)
    start = _terms(precise.factors(plain.state, kept))
    sweeps, tol = limits

    def starts() -> list[Terms]:
        if tensor.ndim == 2 and not options.fixed:
            return [metric.best_matrix(rank)]
        if 1 in options.fixed or not isinstance(options.init, str):
            return [start]
        root = metric.channel_root()
        whitened = pose(_along_channels(kernel, root).to(problem.data.blocks.dtype))
        found = solve(whitened, rank, options, rng)
        inner = replace(whitened, dtype=torch.float64).factors(found.state)
        return [start, unwhitened(_terms(inner), root)]

    def cast(terms: Terms) -> CPFactors:
        ordered = terms if kept else sorted_terms(terms)
        by_mode = {problem.order[i]: f for i, f in kept.items()}
        factors, weights = spread_weights(
            list(ordered.factors), ordered.weights * problem.scale, tensor.dtype, by_mode
        )
        return CPFactors(weights.to(tensor.dtype), tuple(f.to(tensor.dtype) for f in factors))

    def fit() -> Fit[CPFactors]:
        best = best_descent(metric, starts(), sweeps, tol, options.fixed)
        settled = best.converged or (tensor.ndim == 2 and not options.fixed)
        reason = "a sweep gained nothing more" if settled else f"{sweeps} sweeps were made"
        return Fit(cast(best.state), best.errors, settled, reason)

    return fit_or_plain(Judge(tensor, moments, _sides), lambda: cast(start), fit)


def _terms(factors: CPFactors) -> Terms:
    wide = tuple(f.detach().to(torch.float64) for f in factors.factors)
    return Terms(factors.weights.detach().to(torch.float64), wide)


def _sides(factors: CPFactors) -> Sides:
    """The outputs with their weights, (O, r), and the rank-one filters, (r, n)."""
    terms = _terms(factors)
    return terms.factors[0] * terms.weights, terms.filters.T


def _along_channels(kernel: Tensor, root: Tensor) -> Tensor:
    """The kernel (O, I, *k) times R along its input channels."""
    flat = kernel.flatten(2) if kernel.ndim > 2 else kernel[:, :, None]
    return torch.einsum("oit,ij->ojt", flat, root).reshape(kernel.shape).contiguous()
