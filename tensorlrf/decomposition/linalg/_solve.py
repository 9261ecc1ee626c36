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
    target: Tensor,
    start: Tensor,
    precondition: Callable[[Tensor], Tensor],
) -> Tensor:
    """Some steps towards normal(x) = target, from `start` (Hestenes & Stiefel 1952)."""
    solution = start
    residual = target - normal(start)
    direction = precondition(residual)
    slope = (residual * direction).sum()
    for step in range(CG_STEPS):
        image = normal(direction)
        curvature = (direction * image).sum()
        if curvature <= 0 or slope <= 0:
            break
        length = slope / curvature
        solution = solution + length * direction
        if step + 1 == CG_STEPS:
            break
        residual = residual - length * image
        turned = precondition(residual)
        new_slope = (residual * turned).sum()
        direction = turned + (new_slope / slope) * direction
        slope = new_slope
    return solution


def symmetric(matrix: Tensor) -> Tensor:
    """Without what rounding has made differ."""
    return (matrix + matrix.T) / 2
