"""The true residual of a CP model, in blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from tensorlrf.decomposition._cp_als import CPState, hadamard
from tensorlrf.decomposition._mttkrp import CutTensor
from tensorlrf.factors._cp import khatri_rao

_BLOCK = 1 << 19  # entries of a block: small beside the tensor, large enough for a matrix product
_PIECE = 1 << 16  # longest run of squares that is summed in the dtype of the data


def square_norm(tensor: CutTensor) -> Tensor:
    """||X||^2 as a float64 scalar on the device, a block at a time."""
    total = torch.zeros((), dtype=torch.float64, device=tensor.blocks.device)
    for block in _row_blocks(tensor.blocks):
        total = total + _square(block)
    return total


def square_residuals(tensor: CutTensor, state: CPState) -> Tensor:
    """||X - X_hat||^2 for each start, (s,) float64, on the device.

    The difference itself is summed, not a difference of squared norms, which cancels.
    """
    return torch.stack([_one(tensor, state.start(i)) for i in range(state.starts)])


def best_scale(tensor: CutTensor, state: CPState) -> Tensor:
    """The number for each start, (s,) float64, by which its model is nearest to X; 1 for a model
    of zero."""
    inner = khatri_rao(tuple(state.columns[k] for k in tensor.cut.inner))
    along = (tensor.contract_outer(state.columns) * inner).sum(0, dtype=torch.float64)
    products = (along.view(state.weights.shape) * state.weights).sum(1)  # <X, X_hat>
    square = state.weights[:, None] @ hadamard(state.grams) @ state.weights[:, :, None]
    model = square.flatten()  # ||X_hat||^2
    return torch.where(model > 0, products / torch.where(model > 0, model, 1.0), 1.0)


def _one(tensor: CutTensor, state: CPState) -> Tensor:
    cut, blocks = tensor.cut, tensor.blocks
    p, m, q = cut.blocks
    factors = state.columns
    weights = state.weights[0].to(blocks.dtype)  # as they are returned
    inner = khatri_rao(tuple(factors[k] for k in cut.inner)) * weights  # (M, r)
    outer = khatri_rao(tuple(factors[k] for k in cut.outer)).view(p, q, -1)
    rows = max(1, _BLOCK // q)
    total = torch.zeros((), dtype=torch.float64, device=blocks.device)
    for slab, right in zip(blocks, outer, strict=True):
        for start in range(0, m, rows):
            stop = start + rows
            residual = torch.addmm(slab[start:stop], inner[start:stop], right.T, alpha=-1)
            total = total + _square(residual)
    return total


def _row_blocks(blocks: Tensor) -> list[Tensor]:
    return [part for slab in blocks for part in slab.split(max(1, _BLOCK // slab.shape[1]))]


def _square(block: Tensor) -> Tensor:
    """Sum of squares, in float64 but within pieces of a row."""
    total = torch.zeros((), dtype=torch.float64, device=block.device)
    for first in range(0, block.shape[1], _PIECE):
        piece = block[:, first : first + _PIECE]
        total = total + torch.linalg.vector_norm(piece, dim=1).to(torch.float64).square().sum()
    return total
