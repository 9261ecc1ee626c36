"""Gradients of a converged CP with respect to the tensor, through the fixed point of a sweep.

At convergence z = g(X, z) for z the factors and weights and g one ALS sweep, so dz/dX =
(I - dg/dz)^-1 dg/dX. The backward pass applies the transposed inverse by its own fixed-point
iteration v <- v0 + (dg/dz)^T v (Christianson 1994, "Reverse accumulation and attractive fixed
points"): memory of two sweeps, however many were made.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tensorlrf.decomposition._cp_als import RIDGE_FLOOR, CPState, als_sweep, gram
from tensorlrf.decomposition._cp_problem import Problem
from tensorlrf.decomposition._mttkrp import CutTensor

_MAX_STEPS = 2000
_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def implicit_state(
    tensor: Tensor, problem: Problem, state: CPState, fixed: frozenset[int]
) -> CPState:
    """`state` once more, as a function of `tensor` (the user's, with its graph)."""
    dtype = problem.data.blocks.dtype
    ridge = RIDGE_FLOOR[dtype]
    ordered = tensor.to(dtype).permute(problem.order) / problem.scale
    graph = CutTensor(problem.data.cut, ordered.reshape(problem.data.cut.blocks))

    def sweep(data: CutTensor, flat: Tensor) -> Tensor:
        return _flatten(als_sweep(data, _unflatten(flat, state), ridge, fixed))

    fixed_point = _flatten(state).detach()
    result = sweep(graph, fixed_point)

    def through_fixed_point(gradient: Tensor) -> Tensor:
        with torch.enable_grad():
            point = fixed_point.clone().requires_grad_()
            image = sweep(problem.data, point)
        total = gradient
        for _ in range(_MAX_STEPS):
            (pulled,) = torch.autograd.grad(image, point, total, retain_graph=True)
            change = gradient + pulled - total
            total = total + change
            if float(change.norm()) <= _TOLERANCE[dtype] * float(total.norm()):
                break
        return total

    if result.requires_grad:
        result.register_hook(through_fixed_point)  # type: ignore[no-untyped-call]
    return _unflatten(result, state)


def _flatten(state: CPState) -> Tensor:
    """Factors and weights as one float64 vector."""
    parts = [u.flatten().to(torch.float64) for u in state.factors]
    return torch.cat([*parts, state.weights.flatten()])


def _unflatten(flat: Tensor, like: CPState) -> CPState:
    sizes = [*(u.numel() for u in like.factors), like.weights.numel()]
    *parts, weights = torch.split(flat, sizes)
    factors = tuple(
        part.view(u.shape).to(u.dtype) for part, u in zip(parts, like.factors, strict=True)
    )
    grams = tuple(gram(u) for u in factors)
    return CPState(factors, weights.view(like.weights.shape), grams, like.progress)
