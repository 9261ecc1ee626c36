"""The least-squares step for one core."""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 1e-10
"""Of the proximal term, relative to the largest diagonal entry of a core's normal matrix."""


def proximal_step(normal: Tensor, right: Tensor, old: Tensor, ridge: float = RIDGE) -> Tensor:
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
