"""Columns that stand for all others: which, and how the others follow from them.

Of rows a (n,) with second moments C = E[a a^T] (n, n) the columns S are kept, and a is told from
them by its best linear estimate, C_:S C_SS^+ a_S: the Nystrom approximation of C.

References: Alaoui & Mahoney 2015 (ridge leverage scores); Williams & Seeger 2001 (Nystrom);
Hassibi & Stork 1993 (equations 5 and 6: what the loss of one column costs, and what makes it good).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tensorlrf.decomposition.shrinkage import ROUNDING

AT_ONCE = 16
"""Parts of the columns to be dropped that are dropped one part after the other."""


def ridge_leverage(gram: Tensor, ridge: float) -> Tensor:
    """The diagonal of C (C + ridge I)^-1, (n,): near one for a column that no others tell."""
    shifted = gram.clone()
    shifted.diagonal().add_(ridge)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(shifted))
    return 1 - ridge * inverse.diagonal()


def columns_by_leverage(gram: Tensor, k: int) -> Tensor:
    """The k columns of the largest ridge leverage scores, (k,) in their order; the ridge is the
    mean of the eigenvalues beyond the k largest, as the part of C that k columns leave out."""
    values = torch.linalg.eigvalsh(gram).clamp(min=0)
    left = float(values[: len(values) - k].mean()) if k < len(values) else 0.0
    ridge = max(left, ROUNDING * float(values[-1]))
    return ridge_leverage(gram, ridge).topk(k).indices.sort().values


def columns_by_elimination(gram: Tensor, k: int, weight: Tensor) -> Tensor:
    """The k columns that are left, (k,) in their order, when those go whose loss costs W a the
    least: E |W (a - C_:S C_SS^+ a_S)|^2 grows by |w_j|^2 / [C_SS^-1]_jj without column j, for W
    with all that the others make good.

    gram    C (n, n), positive definite
    weight  W (m, n), in the same dtype
    """
    n = len(gram)
    left = torch.arange(n, device=gram.device)
    while len(left) > k:
        part = gram[left][:, left]
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(part))
        whole = (weight @ gram[:, left]) @ inverse  # (m, left): with what the others make good
        costs = whole.square().sum(0) / inverse.diagonal()
        drop = min(len(left) - k, max(1, -(-(n - k) // AT_ONCE)))
        left = left[costs.topk(len(left) - drop).indices.sort().values]
    return left


def interpolation(gram: Tensor, columns: Tensor, ridge: float = 0.0) -> Tensor:
    """P (n, k) by which P a_S is the best estimate of a: C_:S (C_SS + ridge I)^+, and the columns
    themselves as they are where there is no ridge."""
    square = gram[columns][:, columns].clone()
    square.diagonal().add_(ridge)
    values, vectors = torch.linalg.eigh(square)
    seen = values > ROUNDING * values[-1].clamp(min=0) * len(values) ** 0.5
    inverse = torch.where(seen, values, 1.0).reciprocal().where(seen, 0.0)
    estimate: Tensor = gram[:, columns] @ (vectors * inverse) @ vectors.T
    return estimate
