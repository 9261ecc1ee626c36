"""Rotary positions: keys turned by tables of cosines and sines, pair by pair (Su et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

HALVES, NEIGHBOURS = "halves", "neighbours"
TURNS = (HALVES, NEIGHBOURS)
"""Which numbers of a head are a pair: those at one place in either half, or neighbours."""


def turned(keys: Tensor, tables: tuple[Tensor, Tensor], turn: str) -> Tensor:
    """Keys (batch, heads, n, d) by tables (batch or 1, n, w), of which the first w numbers of a
    head turn."""
    cos, sin = (table.unsqueeze(1) for table in tables)
    width = cos.shape[-1]
    own = keys if width == keys.shape[-1] else keys[..., :width]
    across = _halves(own) if turn == HALVES else _neighbours(own)
    found = (own * cos + across * sin).to(keys.dtype)
    return found if width == keys.shape[-1] else torch.cat((found, keys[..., width:]), -1)


def _halves(keys: Tensor) -> Tensor:
    first, second = keys.chunk(2, -1)
    return torch.cat((-second, first), -1)


def _neighbours(keys: Tensor) -> Tensor:
    return torch.stack((-keys[..., 1::2], keys[..., ::2]), -1).flatten(-2)
