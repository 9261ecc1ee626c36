"""Columns that stand for all others: which, and how the others follow from them.

Of rows a (n,) with second moments C = E[a a^T] (n, n) the columns S are kept, and a is told from
them by its best linear estimate, C_:S C_SS^+ a_S: the Nystrom approximation of C.

References: Williams & Seeger 2001 (Nystrom); Hassibi & Stork 1993 (equations 5 and 6: what the loss
of one column costs, and what makes it good).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tensorlrf.decomposition.shrinkage import ROUNDING, is_definite

PART = 16
"""Of the columns that are left one in so many goes at a time."""

FEWEST = 8
"""Of all columns one in so many stays when the rest is no longer asked again who is to go."""


@dataclass(frozen=True)
class Elimination:
    """The order in which columns go whose loss costs the least.

    order   (n,) columns, the one that stays the longest first
    sizes   numbers of columns, from all on down to none
    losses  E |W (a - C_:S C_SS^+ a_S)|^2 with so many of them
    """

    order: Tensor
    sizes: tuple[int, ...]
    losses: tuple[float, ...]

    def columns(self, k: int) -> Tensor:
        """The k that stay, (k,) in their order in a."""
        return self.order[:k].sort().values

    def loss(self, k: int) -> float:
        """With k columns, on the line between those that are known."""
        return float(np.interp(k, self.sizes[::-1], self.losses[::-1]))


def elimination(gram: Tensor, weight: Tensor) -> Elimination:
    """Columns of a go one after the other, those first whose loss costs W a the least: without
    column j E |W (a - C_:S C_SS^+ a_S)|^2 grows by |w_j|^2 / [C_SS^-1]_jj, for W with all that the
    others make good.

    gram    C (n, n), positive definite
    weight  W (m, n), in the same dtype
    """
    n = len(gram)
    left, gone = torch.arange(n, device=gram.device), []
    seen = weight @ gram  # (m, n): W C
    energy = float((seen * weight).sum())
    sizes, losses = [], []
    while True:
        part = gram[left][:, left]
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(part))
        whole = seen[:, left] @ inverse  # (m, left): with what the others make good
        costs = whole.square().sum(0) / inverse.diagonal()
        sizes.append(len(left))
        losses.append(max(0.0, energy - float((whole * seen[:, left]).sum())))
        last = len(left) <= max(1, n // FEWEST)
        drop = len(left) if last else max(1, len(left) // PART)
        going = costs.argsort(stable=True)[:drop]
        gone.append(left[going])
        if last:
            order = torch.cat(gone).flip(0)
            return Elimination(order, (*sizes, 0), (*losses, energy))
        keep = torch.ones(len(left), dtype=torch.bool, device=gram.device)
        keep[going] = False
        left = left[keep]


def interpolation(gram: Tensor, columns: Tensor) -> Tensor:
    """P (n, k) by which P a_S is the best estimate of a: C_:S C_SS^+."""
    square = gram[columns][:, columns]
    if is_definite(square, -ROUNDING * float(square.diagonal().sum())):
        solved: Tensor = torch.cholesky_solve(gram[columns], torch.linalg.cholesky(square))
        return solved.T
    values, vectors = torch.linalg.eigh(square)
    seen = values > ROUNDING * values[-1].clamp(min=0) * len(values) ** 0.5
    inverse = torch.where(seen, values, 1.0).reciprocal().where(seen, 0.0)
    estimate: Tensor = gram[:, columns] @ (vectors * inverse) @ vectors.T
    return estimate
