"""One side of a Kronecker sum improved by conjugate gradients, in the metric of the inputs.

For many terms: their normal matrix has as many rows as s terms have columns, while an image under
it takes two passes of a (m, n) matrix through the terms and one through G.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tensorlrf.decomposition.linalg._solve import CG_STEPS, cholesky, conjugate_gradients

RIDGE = 1e-4
"""Of what preconditions, relative: directions that inputs hardly see are left as they are."""


def image_cost(s: int, m: int, n: int) -> float:
    """Multiply-adds of all steps for one side, of s terms and a weight (m, n)."""
    return float(CG_STEPS + 1) * m * n * (n + 2 * s)


def marginals(gram: Tensor, n1: int) -> tuple[Tensor, Tensor]:
    """Sums of G, columns (n1, c), over pairs that agree in c (n1, n1), or in n1 (c, c).

    Were the two independent, G would be their Kronecker product, over its trace.
    """
    c = gram.shape[0] // n1
    split = gram.view(n1, c, n1, c)
    return split.diagonal(dim1=1, dim2=3).sum(2), split.diagonal(dim1=0, dim2=2).sum(2)


def improved_by_gradients(
    x: Tensor,
    other: Tensor,
    mine: Tensor,
    theirs: Tensor,
    applied: Callable[[Tensor], Tensor],
    wanted: Tensor,
) -> Tensor:
    """Steps towards the least-squares x (s, rows, w) for `other` (s, rows', v), from x.

    mine (w, w) and theirs (v, v) are the marginals of G, over the root of its trace each; `applied`
    maps (s, rows, w) to its image under the normal matrix, `wanted` is the right-hand side.
    """
    s, rows, w = x.shape
    weights = (other @ theirs).reshape(s, -1) @ other.reshape(s, -1).T
    left, right = cholesky(weights, RIDGE), cholesky(mine, RIDGE)

    def precondition(residual: Tensor) -> Tensor:
        over_terms = torch.cholesky_solve(residual.reshape(s, -1), left)
        return torch.cholesky_solve(over_terms.reshape(-1, w).T, right).T.reshape(s, rows, w)

    return conjugate_gradients(applied, wanted, x, precondition)
