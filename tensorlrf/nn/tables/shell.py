"""A subclass of an embedding without its weight, from which it is made again."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tensorlrf.nn.copies import copy_of

SHELL = "_shell"
"""Where a factored embedding keeps that of what it stands for."""


def shell_of(table: Any) -> nn.Module:
    """A copy of an embedding with all that it holds, but a weight without values or size."""
    blank = torch.empty(0, dtype=table.weight.dtype, device="meta")
    return copy_of(table, {id(table.weight): nn.Parameter(blank, requires_grad=False)})


def filled(layer: Any, weight: nn.Parameter) -> nn.Module | None:
    """What a factored embedding stands for on that weight, where that is a subclass and all that it
    holds has values; else None."""
    shell = vars(layer).get(SHELL)
    if shell is None or any(b.is_meta for b in shell.buffers()):
        return None
    made: Any = copy_of(shell)
    made.num_embeddings = len(weight)
    made.padding_idx = layer.padding_idx
    made.weight = weight
    return made.to(weight.device)  # type: ignore[no-any-return]
