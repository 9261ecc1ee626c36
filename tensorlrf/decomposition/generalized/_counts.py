"""Counts as CP-APR looks at them: along one mode, the ratio of data and model times the factors of
all others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tensorlrf.decomposition.generalized._data import Data
from tensorlrf.decomposition.generalized._dense import BLOCK
from tensorlrf.decomposition.generalized._loss import EPS
from tensorlrf.decomposition.generalized._nonzeros import CHUNK, Nonzeros
from tensorlrf.factors.algebra import khatri_rao


class Ratio(NamedTuple):
    """phi   (n, r): of the gradient 1 - phi of the loss in a factor with the weights
    loss  sum of m - x log m over all entries
    """

    phi: Tensor
    loss: float


Along = Callable[[Tensor], Ratio]
"""From the factor of a mode with the weights in its columns (n, r), float64."""


def along(data: Data, factors: Sequence[Tensor], mode: int) -> Along:
    """Of that mode, the others held: factors (n_k, r) whose columns sum to one."""
    dtype = data.values.dtype
    others = tuple(f.to(dtype) for k, f in enumerate(factors) if k != mode)
    if data.sparse is None:
        return _along_dense(data.values.movedim(mode, 0).flatten(1), khatri_rao(others))
    return _along_nonzeros(data.sparse, others, mode)


def _along_dense(unfolded: Tensor, product: Tensor) -> Along:
    """unfolded (n, Q), product (Q, r); some rows at a time, each of which is for itself."""
    step = max(1, BLOCK // len(product))

    def ratio(factor: Tensor) -> Ratio:
        near = factor.to(unfolded.dtype)
        phi = torch.empty_like(near)
        fitted = torch.zeros((), dtype=torch.float64, device=near.device)
        for start in range(0, len(near), step):
            x = unfolded[start : start + step]
            model = (near[start : start + step] @ product.T).clamp_min_(EPS)
            torch.mm(x / model, product, out=phi[start : start + step])
            fitted += (x * model.log_()).sum(1).sum(dtype=torch.float64)
        return Ratio(phi.double(), float(factor.sum() - fitted))

    return ratio


def _along_nonzeros(data: Nonzeros, others: Sequence[Tensor], mode: int) -> Along:
    own = data.indices[mode]
    rest = [row for k, row in enumerate(data.indices) if k != mode]
    rows = others[0][rest[0]]
    for f, place in zip(others[1:], rest[1:], strict=True):
        rows *= f[place]  # (s, r)

    def ratio(factor: Tensor) -> Ratio:
        near = factor.to(rows.dtype)
        phi = torch.zeros_like(near)
        fitted = torch.zeros((), dtype=torch.float64, device=near.device)
        for start in range(0, len(own), CHUNK):
            some, x = rows[start : start + CHUNK], data.values[start : start + CHUNK]
            place = own[start : start + CHUNK]
            model = (near[place] * some).sum(1).clamp_min_(EPS)
            phi.index_add_(0, place, some * (x / model)[:, None])
            fitted += torch.dot(x.double(), model.log_().double())
        return Ratio(phi.double(), float(factor.sum() - fitted))

    return ratio
