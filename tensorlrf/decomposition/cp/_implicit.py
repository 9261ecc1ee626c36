"""Gradients of a converged CP with respect to the tensor, through the fixed point of a sweep.

At convergence z = g(X, z) for z the factors and weights and g one ALS sweep, so dz/dX =
(I - dg/dz)^-1 dg/dX. The backward pass applies the transposed inverse (Christianson 1994, "Reverse
accumulation and attractive fixed points"): memory of two sweeps, however many were made. His
iteration is slow where ALS is, so the system is solved by GMRES (Saad & Schultz 1986), which wants
nothing but the same products with (dg/dz)^T.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tensorlrf.decomposition.cp._als import RIDGE_FLOOR, als_sweep
from tensorlrf.decomposition.cp._problem import Problem
from tensorlrf.decomposition.cp._state import CPState
from tensorlrf.decomposition.linalg._derivatives import with_values
from tensorlrf.decomposition.linalg.multilinear._mttkrp import CutTensor
from tensorlrf.factors.autocast import without_autocast

_SPACE = 60  # vectors of a Krylov space
_RESTARTS = 20
_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def implicit_state(
    tensor: Tensor, problem: Problem, state: CPState, fixed: frozenset[int]
) -> CPState:
    """`state` as a function of `tensor` (the user's, with its graph)."""
    dtype = problem.data.blocks.dtype
    # Of norm one, by a power of two: then factors and weights are of one size, whatever the scale.
    unit = math.ldexp(1.0, math.frexp(problem.norm)[1]) if problem.norm > 0 else 1.0
    ordered = tensor.to(dtype).permute(problem.order) / problem.scale / unit
    graph = CutTensor(problem.data.cut, ordered.reshape(problem.data.cut.blocks))
    known = CutTensor(graph.cut, graph.blocks.detach())
    free = [k for k in range(len(state.factors)) if k not in fixed]
    weights = state.weights / unit
    top = weights.abs().amax()
    least = torch.where(top > 0, torch.finfo(torch.float64).eps * top, 1.0)
    size = torch.maximum(weights.abs(), least)
    # A direction counts by what it does to the model, so by the weight of its column.
    columns = [size.expand_as(state.factors[k]).flatten() for k in free]
    sizes = torch.cat([*columns, torch.ones_like(size[0])])

    def flatten(state: CPState) -> Tensor:
        parts = [state.factors[k].flatten().to(torch.float64) for k in free]
        return torch.cat([*parts, state.weights.flatten()])

    def unflatten(flat: Tensor) -> CPState:
        lengths = [*(state.factors[k].numel() for k in free), weights.numel()]
        *parts, last = torch.split(flat, lengths)
        factors = list(state.factors)
        for k, part in zip(free, parts, strict=True):
            factors[k] = part.view(factors[k].shape).to(dtype)
        return CPState(tuple(factors), last.view(weights.shape))

    def sweep(data: CutTensor, flat: Tensor) -> Tensor:
        return flatten(als_sweep(data, unflatten(flat), RIDGE_FLOOR[dtype], fixed))

    @without_autocast()
    def solved(gradient: Tensor) -> Tensor:
        with torch.enable_grad():
            start = point.clone().requires_grad_()
            swept = sweep(known, start)

        def apply(v: Tensor) -> Tensor:
            (pulled,) = torch.autograd.grad(swept, start, v * sizes, retain_graph=True)
            return v - pulled / sizes

        return gmres(apply, gradient / sizes, _TOLERANCE[dtype]) * sizes

    point = flatten(CPState(state.factors, weights)).detach()
    image = _FixedPoint.apply(sweep(graph, point), solved)  # type: ignore[no-untyped-call]
    moved = unflatten(with_values(point, image))
    return CPState(moved.factors, moved.weights * unit)


class _FixedPoint(torch.autograd.Function):
    """g(X, z) as the z for which it is z: the gradient passes through (I - dg/dz)^-T."""

    @staticmethod
    def forward(image: Tensor, solved: Callable[[Tensor], Tensor]) -> Tensor:
        return image.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.solved = inputs[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.solved(gradient), None


def gmres(apply: Callable[[Tensor], Tensor], right: Tensor, tol: float) -> Tensor:
    """x with |apply(x) - right| <= tol |right|, float64, or as near as restarts lead."""
    top = float(right.abs().max())
    if not 0 < top < math.inf:
        return right
    unit = math.ldexp(1.0, math.frexp(top)[1])
    right = right / unit
    x = right
    goal = tol * float(torch.linalg.vector_norm(right))
    before = math.inf
    for _ in range(_RESTARTS):
        residual = right - apply(x)
        length = float(torch.linalg.vector_norm(residual))
        if length <= goal or length > 0.9 * before:
            break
        before = length
        x = x + _krylov_step(apply, residual, length, goal)
    return x * unit


def _krylov_step(
    apply: Callable[[Tensor], Tensor], residual: Tensor, length: float, goal: float
) -> Tensor:
    """The combination of residual, A residual, A^2 residual, ... with the least residual."""
    space = [residual / length]
    columns: list[Tensor] = []  # of the Hessenberg matrix, each longer by one
    for k in range(min(_SPACE, residual.numel())):
        image = apply(space[k])
        basis = torch.stack(space)
        size = torch.linalg.vector_norm(image)
        along = basis @ image
        image = image - along @ basis
        again = basis @ image  # what rounding left
        image = image - again @ basis
        rest = torch.linalg.vector_norm(image)
        columns.append(torch.cat([along + again, rest[None]]))
        matrix = residual.new_zeros(k + 2, k + 1)
        for j, column in enumerate(columns):
            matrix[: j + 2, j] = column
        target = residual.new_zeros(k + 2, 1)
        target[0] = length
        weights = torch.linalg.pinv(matrix, rtol=1e-14) @ target
        left = float(torch.linalg.vector_norm(matrix @ weights - target))
        if left <= goal or float(rest) <= 1e-14 * float(size):
            break
        space.append(image / rest)
    step: Tensor = (weights.T @ torch.stack(space[: len(columns)]))[0]
    return step
