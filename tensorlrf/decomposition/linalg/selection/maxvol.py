"""Rows of nearly the largest volume."""

from __future__ import annotations

import torch
from torch import Tensor

BOUND = 1.02
"""No exchange of one row for another raises the volume by more than this factor."""


def maxvol(basis: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of `basis` (n, r), r <= n, of full column rank, whose square part is nearly of the
    largest determinant (Goreinov et al. 2010).

    Returns their r indices, and `basis` in their coordinates, (n, r): the identity in these rows,
    and no entry above 1.02 in modulus.
    """
    n, r = basis.shape
    _, exchanges = torch.linalg.lu_factor(basis)
    order = list(range(n))
    for k, other in enumerate(exchanges.tolist()):
        order[k], order[other - 1] = order[other - 1], order[k]
    rows = torch.tensor(order[:r], device=basis.device)
    weights = torch.linalg.solve(basis[rows].T, basis.T).T
    # Each exchange raises a bounded volume by the factor at least.
    for _ in range(10 * r + 100):
        i, j = divmod(int(weights.abs().argmax()), r)
        pivot = float(weights[i, j])
        if abs(pivot) <= BOUND:
            break
        change = weights[i].clone()
        change[j] -= 1.0
        weights = weights - torch.outer(weights[:, j], change / pivot)
        rows[j] = i
    # Exchanges add up rounding; the last solution has it once.
    return rows, torch.linalg.solve(basis[rows].T, basis.T).T
