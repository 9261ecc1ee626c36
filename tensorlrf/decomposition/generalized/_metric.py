"""The metric in which steps of generalised CP are short or long: the Hessian of squares, of each
factor by itself (that of alternating least squares; de Sterck, Winlaw & Howse 2018 take it so)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tensorlrf.decomposition.generalized._dense import products
from tensorlrf.decomposition.generalized._stack import apart

RIDGE = 1e-2
"""Added to its diagonal, as a share of that: columns may be nearly dependent; a tenth as much of
its mean, where one is zero."""

TINY = 1e-200
"""Added besides: where the model vanishes, the metric is this one's."""

Metric = Callable[[Tensor], Tensor]
"""The inverse, of several stacks (c, sum n_k, r) at once."""


def metric_at(stack: Tensor, shape: Sequence[int]) -> Metric:
    """At a point: a product with the inverse of the Hadamard product of the other factors' Grams,
    for the rows of each factor."""
    grams = torch.stack([f.T @ f for f in apart(stack, shape)])
    others = torch.stack(products(grams)[1])  # (N, r, r)
    own = others.diagonal(dim1=1, dim2=2)
    ridge = RIDGE * (own + 0.1 * own.mean(1, keepdim=True))
    inverse = torch.linalg.inv_ex(others + torch.diag_embed(ridge + TINY))[0]
    sizes = list(shape)

    def metric(stacks: Tensor) -> Tensor:
        parts = zip(torch.split(stacks, sizes, 1), inverse, strict=True)
        return torch.cat([part @ own for part, own in parts], 1)

    return metric
