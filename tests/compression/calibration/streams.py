"""Rows as layers may be fed them: all that moments which are kept in part have to bear."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.draws import seeded

KINDS = ["random", "falling", "low rank", "zeros", "one loud row", "repeated"]


def stream(kind: str, count: int, n: int, seed: int) -> Tensor:
    """(count, n) in float64."""
    rows = seeded(count, n, seed=seed)
    if kind == "falling":
        rows = rows * torch.logspace(0, -3, n, dtype=torch.float64, device="cpu")
    elif kind == "low rank":
        rows = seeded(count, 2, seed=seed) @ seeded(2, n, seed=seed + 1)
    elif kind == "zeros":
        rows = torch.zeros_like(rows)
    elif kind == "one loud row":
        rows[count // 2] *= 1e3
    elif kind == "repeated":
        rows = rows[:1].expand(count, n)
    return rows
