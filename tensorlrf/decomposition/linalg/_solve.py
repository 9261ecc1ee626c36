"""Systems of positive semidefinite matrices: factors with a ridge, steps, conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CG_STEPS = 6
"""Of conjugate gradients within a sweep, which begin where the last sweep ended."""

RIDGE = 1e-13
"""Of a factor, relative to the largest diagonal entry."""

PROXIMAL_RIDGE = 1e-10
"""Of the proximal term of a step, relative to the largest diagonal entry of its normal matrix."""


def cholesky(matrix: Tensor, ridge: float = RIDGE) -> Tensor:
    """Cholesky factor of a positive semidefinite matrix, with a ridge.

    The ridge is relative to the largest diagonal entry: `ridge`, and more where rounding leaves
    the matrix indefinite. In float64 it is far below what the result is used for.
    """
    largest = float(matrix.diagonal().max())
    largest = largest if largest > 0 else 1.0
    while True:
        shifted = matrix.clone()
        shifted.diagonal().add_(ridge * largest)
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if not failed:
            return factor
        ridge *= 30


def conjugate_gradients(
    normal: Callable[[Tensor], Tensor],
    residual: Tensor,
    start: Tensor,
    precondition: Callable[[Tensor], Tensor] | None = None,
    steps: int | None = None,
    least: float = 0.0,
) -> Tensor:
    """x after some steps (`CG_STEPS`) from `start` towards normal(x) = b (Hestenes & Stiefel 1952).

    normal is symmetric and positive semidefinite, `residual` is b - normal(start). No step raises
    (x, normal x) - 2 (x, b). They end early where the residual, squared and preconditioned, is at
    most a share `least` of what it was, and at a direction that `normal` does not see.
    """
    steps = CG_STEPS if steps is None else steps
    x = start
    direction = residual if precondition is None else precondition(residual)
    slope = first = float((residual * direction).sum())
    for step in range(1, steps + 1):
        if slope <= least * first:
            break
        image = normal(direction)
        curvature = float((direction * image).sum())
        if not curvature > 0:
            break
        length = slope / curvature
        x = x + length * direction
        if step == steps:
            break
        residual = residual - length * image
        turned = residual if precondition is None else precondition(residual)
        before, slope = slope, float((residual * turned).sum())
        direction = turned + (slope / before) * direction
    return x


def proximal_step(
    normal: Tensor, right: Tensor, old: Tensor, ridge: float = PROXIMAL_RIDGE
) -> Tensor:
    """`old` moved towards the least of tr(X^T H X) - 2 tr(B^T X); not at all if that rises.

    normal H (u, u), right B and old X (u, m). The proximal term makes the system definite where
    H is singular: directions that it does not see stay as they are.
    """
    residual = right - normal @ old
    largest = float(normal.diagonal().max())
    if not largest > 0:
        return old
    ridge *= largest
    for _ in range(4):
        system = normal.clone()
        system.diagonal().add_(ridge)
        lower, failed = torch.linalg.cholesky_ex(system)
        if not bool(failed):
            step = torch.cholesky_solve(residual, lower)
            change = float((step * (normal @ step - 2 * residual)).sum())
            if change <= 0:
                return old + step
        ridge *= 1e3
    return old


def symmetric(matrix: Tensor) -> Tensor:
    """Without what rounding has made differ."""
    return (matrix + matrix.T) / 2
