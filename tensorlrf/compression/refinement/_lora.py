"""A change of low rank to a tensor that itself stays (Hu et al. 2022), so that gradients and the
moments of an optimiser take less memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class LowRankChange(nn.Module):
    """T + up @ down, of the unfolding of T along its first axis.

    up    (rows, rank), zeros at first
    down  (rank, columns), drawn
    """

    def __init__(self, tensor: Tensor, rank: int, draws: torch.Generator) -> None:
        super().__init__()
        rows, columns = tensor.shape[0], tensor.numel() // tensor.shape[0]
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        drawn = torch.randn(rank, columns, generator=draws, dtype=dtype, device=draws.device)
        drawn = drawn / rank**0.5
        self.up = nn.Parameter(torch.zeros(rows, rank, dtype=dtype, device=tensor.device))
        self.down = nn.Parameter(drawn.to(tensor.device))

    def forward(self, tensor: Tensor) -> Tensor:
        """The tensor with the change."""
        return tensor + (self.up @ self.down).reshape(tensor.shape).to(tensor.dtype)


def saves(tensor: Tensor, rank: int) -> bool:
    """Whether a change of this rank has fewer numbers than the tensor."""
    if tensor.ndim < 2:
        return False
    rows = tensor.shape[0]
    return rank * (rows + tensor.numel() // rows) < tensor.numel()


def with_change(layer: nn.Module, name: str, rank: int, draws: torch.Generator) -> LowRankChange:
    """Let a parameter of a layer, which stays, be changed at this rank."""
    change = LowRankChange(getattr(layer, name).detach(), rank, draws)
    parametrize.register_parametrization(layer, name, change)
    return change
