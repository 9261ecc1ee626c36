"""Standard normal numbers of a seed of their own, which leave torch's global generator alone."""

from __future__ import annotations

import torch
from torch import Tensor


def generator(seed: int = 0) -> torch.Generator:
    """One on the CPU that begins at the seed."""
    return torch.Generator("cpu").manual_seed(seed)


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Drawn in float64 and then cast: the same numbers, rounded, in every dtype."""
    draws = generator(seed)
    return torch.randn(shape, generator=draws, dtype=torch.float64, device="cpu").to(dtype)


def seeded32(*shape: int, seed: int = 0) -> Tensor:
    """Drawn in float32, which gives other numbers than a cast does."""
    return torch.randn(shape, generator=generator(seed), dtype=torch.float32, device="cpu")
