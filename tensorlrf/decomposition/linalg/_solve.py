"""Systems of positive semidefinite matrices: factors with a ridge, and conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CG_STEPS = 6
"""Of conjugate gradients within a sweep, which begin where the last sweep ended."""

RIDGE = 1e-13
"""Of a factor, relative to the largest diagonal entry."""


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


def symmetric(matrix: Tensor) -> Tensor:
    """Without what rounding has made differ."""
    return (matrix + matrix.T) / 2
