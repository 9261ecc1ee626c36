"""Data drawn from planted models, for each loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tensorlrf import CPFactors
from tests.draws import generator

SHAPE, RANK = (12, 14, 16), 2


def rates(low: float = 0.2, high: float = 2.0, seed: int = 0) -> CPFactors:
    """Of terms with entries between these."""
    draws = generator(seed)
    factors = [
        low + (high - low) * torch.rand(n, RANK, generator=draws, dtype=torch.float64, device="cpu")
        for n in SHAPE
    ]
    return CPFactors(torch.ones(RANK, dtype=torch.float64, device="cpu"), tuple(factors))


def planted(name: str, seed: int = 1) -> tuple[Tensor, Tensor]:
    """What the loss of that name is for: data, and the model they were drawn from."""
    draws = generator(seed)

    def uniform() -> Tensor:
        return torch.rand(SHAPE, generator=draws, dtype=torch.float64, device="cpu")

    def exponential() -> Tensor:
        return -uniform().log()

    model = rates().to_dense()
    if name in ("gaussian", "huber"):
        noise = 0.01 * torch.randn(SHAPE, generator=draws, dtype=torch.float64, device="cpu")
        wild = 50.0 * (uniform() < 0.02) if name == "huber" else torch.zeros_like(noise)
        return model + noise + wild, model
    if name == "poisson":
        return torch.poisson(20 * model, generator=draws), 20 * model
    if name == "poisson_log":
        return torch.poisson((model / 2).exp(), generator=draws), model / 2
    if name == "negative_binomial":
        return torch.poisson(model * exponential(), generator=draws), model
    if name == "bernoulli_odds":
        return (uniform() < model / (1 + model)).double(), model
    if name == "bernoulli_logit":
        model = model - 2.5
        return (uniform() < model.sigmoid()).double(), model
    if name == "gamma":
        return model * exponential(), model
    return model * 2 / math.sqrt(math.pi) * exponential().sqrt(), model  # rayleigh
