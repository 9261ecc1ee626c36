"""Networks with factored layers, in float64, the same ones on every rank."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tensorlrf
from tensorlrf.nn import FactoredLinear, factorize

METHODS = ("svd", "cp", "tucker", "kron", "tt", "tr", "blr", "monarch", "blast")
WIDTH, INNER, HEADS, SHARED, RANK = 16, 32, 4, 2, 6


def linear(inputs: int, out: int, bias: bool = False) -> FactoredLinear:
    layer = factorize(nn.Linear(inputs, out, bias=bias, dtype=torch.float64), "svd", RANK)
    assert isinstance(layer, FactoredLinear)
    return layer


class MLP(nn.Module):
    """Gated, as that of a Llama."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = linear(WIDTH, INNER), linear(WIDTH, INNER, bias=True)
        self.down_proj = linear(INNER, WIDTH, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class Attention(nn.Module):
    """Causal, of grouped queries; as many heads as its projections give it."""

    def __init__(self) -> None:
        super().__init__()
        self.head_dim = WIDTH // HEADS
        self.q_proj = linear(WIDTH, WIDTH, bias=True)
        self.k_proj = linear(WIDTH, SHARED * self.head_dim)
        self.v_proj = linear(WIDTH, SHARED * self.head_dim)
        self.o_proj = linear(WIDTH, WIDTH, bias=True)
        self.q_norm = nn.RMSNorm(self.head_dim, eps=1e-6, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q = self.q_norm(q)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        out: Tensor = self.o_proj(y.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(), MLP()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH, dtype=torch.float64) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norms[0](x))
        y: Tensor = x + self.mlp(self.norms[1](x))
        return y


WORDS = {
    "*.attention.[qkv]_proj": "colwise",
    "*.attention.o_proj": "rowwise",
    "*.attention.q_norm": "replicated_with_grad_allreduce",
    "*.mlp.gate_proj": "colwise",
    "*.mlp.up_proj": "colwise",
    "*.mlp.down_proj": "rowwise",
}


def blocks() -> nn.Sequential:
    return nn.Sequential(Block(), Block())


class Everything(nn.Module):
    """A table, a convolution, a recurrence, and a linear layer of each format."""

    def __init__(self) -> None:
        super().__init__()
        wide: Any = {"dtype": torch.float64}
        self.table = factorize(nn.Embedding(24, WIDTH, **wide), "svd", 4)
        self.conv = factorize(nn.Conv1d(WIDTH, WIDTH, 3, padding=1, **wide), "tucker", 8)
        self.layers = nn.ModuleList(
            factorize(nn.Linear(WIDTH, WIDTH, **wide), method, 0.6) for method in METHODS
        )
        lstm = nn.Sequential(nn.LSTM(WIDTH, WIDTH, batch_first=True, **wide))
        self.lstm = tensorlrf.compress(lstm, keep_params=0.6, progress=False)[0][0]
        self.head = nn.Linear(WIDTH, 3, **wide)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        x = x + self.conv(x.mT).mT
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        x = self.lstm(x)[0]
        y: Tensor = self.head(x.mean(1))
        return y
