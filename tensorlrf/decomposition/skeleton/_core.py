"""The core of CUR: what joins columns and rows."""

from __future__ import annotations

import torch
from torch import Tensor

from tensorlrf.decomposition.linalg._gram import thin_svd


def best_core(
    matrix: Tensor, rows: Tensor, columns: Tensor, root: Tensor | None, cut: float
) -> Tensor:
    """C^+ W R^+ of W (m, n), or with W L and R L in place of W and R, (r, p) in float64: the core U
    for which W - C U R is least in the metric of L L^T."""
    image = matrix if root is None else (matrix.to(torch.float64) @ root).to(matrix.dtype)
    left, first = torch.linalg.qr(matrix[:, columns].to(torch.float64))
    right, last = torch.linalg.qr(image[rows].T.to(torch.float64))
    middle = (left.to(image.dtype).T @ image).to(torch.float64) @ right  # (r, p)
    core: Tensor = pseudo_inverse(first, cut) @ middle @ pseudo_inverse(last, cut).T
    return core


def pseudo_inverse(square: Tensor, cut: float) -> Tensor:
    """Without singular values below `cut` times the largest."""
    left, values, right = thin_svd(square)
    kept = values > cut * values[0]
    inverse = torch.where(kept, values, 1.0).reciprocal() * kept
    inverted: Tensor = (right.T * inverse) @ left.T
    return inverted
