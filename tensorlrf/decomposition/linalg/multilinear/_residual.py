"""Norms of a tensor and of what a CP model leaves of it, in blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from tensorlrf.decomposition.linalg.multilinear._mttkrp import CutTensor
from tensorlrf.factors.algebra import khatri_rao

_BLOCK = 1 << 19  # entries of a block: small beside the tensor, large enough for a matrix product
_PIECE = 1 << 16  # longest run of squares that is summed in the dtype of the data


def norm_of(tensor: CutTensor) -> float:
    """||X||, a block at a time."""
    if tensor.blocks.numel() <= _PIECE:
        return float(torch.linalg.vector_norm(tensor.blocks, dtype=torch.float64))
    rows = max(1, _BLOCK // tensor.blocks.shape[2])
    parts = [part for slab in tensor.blocks for part in torch.split(slab, rows)]
    return math.sqrt(float(reduce(torch.add, map(sum_of_squares, parts))))


def square_residual(tensor: CutTensor, factors: Sequence[Tensor], weights: Tensor) -> Tensor:
    """||X - X_hat||^2, float64, on the device, of columns (n_k, r) with weights (r,).

    The difference itself is summed, not a difference of squared norms, which cancels.
    """
    cut, blocks = tensor.cut, tensor.blocks
    p, _, q = cut.blocks
    inner = khatri_rao(tuple(factors[k] for k in cut.inner)) * weights.to(blocks.dtype)  # (M, r)
    outer = khatri_rao(tuple(factors[k] for k in cut.outer)).view(p, q, -1)
    rows = max(1, _BLOCK // q)
    squares = (
        sum_of_squares(torch.addmm(part, left, right.T, alpha=-1))
        for slab, right in zip(blocks, outer, strict=True)
        for part, left in zip(torch.split(slab, rows), torch.split(inner, rows), strict=True)
    )
    return reduce(torch.add, squares)


def sum_of_squares(block: Tensor) -> Tensor:
    """Sum of squares, in float64 but within pieces of a row."""
    lengths = (torch.linalg.vector_norm(piece, dim=1) for piece in torch.split(block, _PIECE, 1))
    total: Tensor = reduce(torch.add, [n.to(torch.float64).square().sum() for n in lengths])
    return total
