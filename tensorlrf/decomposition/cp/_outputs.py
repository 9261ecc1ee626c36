"""The steps of `cp(..., gram=)`: plain starts, descent in the metric, the better of the two."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._fit_or_plain import fit_or_plain
from tensorlrf.decomposition._target import Sides, Target
from tensorlrf.decomposition.cp._filter_als import (
    FilterALS,
    Terms,
    best_descent,
    sorted_terms,
    unwhitened,
)
from tensorlrf.decomposition.cp._options import Options
from tensorlrf.decomposition.cp._problem import Problem, pose
from tensorlrf.decomposition.cp._solve import solve
from tensorlrf.decomposition.linalg.multilinear._columns import spread_weights
from tensorlrf.factors import CPFactors


def fit_to_outputs(
    target: Target[CPFactors],
    tensor: Tensor,
    problem: Problem,
    rank: int,
    options: Options,
    limits: tuple[int, float | None],
    rng: torch.Generator,
) -> Fit[CPFactors]:
    """CP that serves the outputs; never worse in them than plain CP. `limits`: sweeps and tol."""
    kernel = target.matrix.reshape(tensor.shape)
    als = FilterALS(target, tensor.shape)
    plain = solve(problem, rank, options, rng)
    kept = options.kept(problem)
    precise = replace(problem, scale=1.0, dtype=problem.data.blocks.dtype)
    start = _terms(precise.factors(plain.state, kept))
    sweeps, tol = limits

    def starts() -> list[Terms]:
        if tensor.ndim == 2 and not options.fixed:
            return [als.best_matrix(rank)]
        if 1 in options.fixed or not isinstance(options.init, str):
            return [start]
        root = als.channel_root()
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
        best = best_descent(als, starts(), sweeps, tol, options.fixed)
        settled = best.converged or (tensor.ndim == 2 and not options.fixed)
        reason = "a sweep gained nothing more" if settled else f"{sweeps} sweeps were made"
        return Fit(cast(best.state), best.errors, settled, reason)

    return fit_or_plain(target, lambda: cast(start), fit)


def _terms(factors: CPFactors) -> Terms:
    wide = tuple(f.detach().to(torch.float64) for f in factors.factors)
    return Terms(factors.weights.detach().to(torch.float64), wide)


def sides(factors: CPFactors) -> Sides:
    """The outputs with their weights, (O, r), and the rank-one filters, (r, n)."""
    terms = _terms(factors)
    return terms.factors[0] * terms.weights, terms.filters.T


def _along_channels(kernel: Tensor, root: Tensor) -> Tensor:
    """The kernel (O, I, *k) times R along its input channels."""
    flat = kernel.flatten(2) if kernel.ndim > 2 else kernel[:, :, None]
    return torch.einsum("oit,ij->ojt", flat, root).reshape(kernel.shape).contiguous()
