"""Whether experts with a layer for each matrix compute what the packed ones do, on random rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.nn.copies import replica
from tensorlrf.nn.packed.unpacked import Unpacked

Draw = Callable[[int], Tensor]
"""Rows of the width that experts take, that many."""


def differs_on(
    unpacked: Callable[[], Unpacked],
    module: nn.Module,
    inputs: Callable[[int, Draw], tuple[Any, ...]],
    weight: Tensor,
) -> str:
    """Why the forward of a mixture is not what is known of it; empty where it is.

    unpacked  makes the module that is to do the same
    inputs    of the number of experts, and rows as they are drawn: what both are given
    weight    a parameter of the packed one: on meta the forward is believed
    """
    if weight.is_meta:
        return ""
    made: Any = unpacked().eval()
    draws = torch.Generator().manual_seed(0)
    first = next(one for one in made.modules() if isinstance(one, nn.Linear))

    def draw(rows: int) -> Tensor:
        shape = (rows, first.in_features)
        drawn = torch.randn(shape, generator=draws, dtype=torch.float32, device="cpu")
        return drawn.to(weight.device, weight.dtype)

    return _apart(made, module, inputs(made.num_experts, draw), weight.dtype)


def routed(n: int, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
    """n tokens, (n, 2) of the n experts for each, all of them among these, and shares (n, 2)."""
    x = draw(n)
    experts = torch.arange(n, dtype=torch.int64, device=x.device)
    index = torch.stack([experts, experts.roll(1)], dim=1)
    return x, index, draw(2 * n)[:, 0].reshape(n, 2).abs()


def _apart(made: nn.Module, module: nn.Module, given: tuple[Any, ...], dtype: torch.dtype) -> str:
    """Why what both give is not the same; empty where it is."""
    try:
        with torch.no_grad():
            want, got = made(*given), replica(module)(*given)
    except Exception as error:
        return f"its forward fails on a few tokens ({type(error).__name__}: {error})"
    # Sums of two experts, each of two products: rounding of them all, relative to the largest.
    bound = 64 * torch.finfo(dtype).eps * float(want.abs().max())
    near = want.shape == got.shape and bool(((want - got).abs() <= bound).all())
    return "" if near else "its forward differs from what this version knows of experts"
