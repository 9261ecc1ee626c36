"""What one side of a Kronecker sum takes by conjugate gradients, and what comes near its inverse.

For many terms: their normal matrix has as many rows as s terms have columns, while an image under
it takes two passes of a (m, n) matrix through the terms and one through G.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tensorlrf.decomposition._quadratic import Marginals, Product
from tensorlrf.decomposition.linalg._solve import CG_STEPS, cholesky

RIDGE = 1e-4
"""Of what preconditions, relative: directions that inputs hardly see are left as they are."""


def image_cost(s: int, m: int, n: int) -> float:
    """Multiply-adds of all steps for one side, of s terms and a weight (m, n)."""
    return float(CG_STEPS + 1) * m * n * (n + 2 * s)


def marginals(gram: Tensor, n1: int) -> tuple[Tensor, Tensor]:
    """Sums of G, columns (n1, c), over pairs that agree in c (n1, n1), or in n1 (c, c), each over
    the root of its trace.

    Were the two independent, G would be their Kronecker product.
    """
    c = gram.shape[0] // n1
    split = gram.view(n1, c, n1, c)
    trace = float(gram.diagonal().sum())
    root = math.sqrt(trace) if trace > 0 else 1.0
    one, other = split.diagonal(dim1=1, dim2=3).sum(2), split.diagonal(dim1=0, dim2=2).sum(2)
    return one / root, other / root


def preconditioner(
    x: Tensor, other: Tensor, mine: Marginals, theirs: Marginals
) -> Callable[[Tensor], Tensor]:
    """What comes near the inverse of the normal map of x (s, rows, w), for `other` (s, rows', v).

    mine, (rows, rows) and (w, w), and theirs, (rows', rows') and (v, v), are the marginals of the
    target, None for the identity.
    """
    s, rows, w = x.shape
    weights = Product(*theirs).apply(other).reshape(s, -1) @ other.reshape(s, -1).T
    left = cholesky(weights, RIDGE)
    above, right = (None if side is None else cholesky(side, RIDGE) for side in mine)

    def precondition(residual: Tensor) -> Tensor:
        over_terms = torch.cholesky_solve(residual.reshape(s, -1), left)
        if right is not None:
            over_terms = torch.cholesky_solve(over_terms.reshape(-1, w).T, right).T
        solved = over_terms.reshape(s, rows, w)
        return solved if above is None else torch.cholesky_solve(solved, above)

    return precondition
