"""Models of blocks, and checkpoints of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

WORDS = 61


class Block(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(n)
        self.up = nn.Linear(n, 2 * n)
        self.down = nn.Linear(2 * n, n, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.down(self.up(self.norm(x)).relu())
        return y


class Net(nn.Module):
    """Words, blocks and a head, which `course` may have take another way through the blocks."""

    def __init__(self, blocks: Iterable[nn.Module], n: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, n)
        self.entry = nn.Linear(n, n)
        self.blocks = nn.ModuleList(blocks)
        self.last = nn.Linear(n, WORDS)

    def course(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.last(self.course(self.entry(self.embed(ids))))
        return y


def net(kind: type[Net] = Net, blocks: int = 3, n: int = 16, block: type = Block) -> Net:
    torch.manual_seed(0)
    return kind([block(n) for _ in range(blocks)], n).eval()


def ids(count: int = 4, seed: int = 0, size: int = 24) -> list[Tensor]:
    """Batches."""
    draws = torch.Generator("cpu").manual_seed(seed)
    return [
        torch.randint(0, WORDS, (8, size), generator=draws, device="cpu", dtype=torch.int64)
        for _ in range(count)
    ]


def saved(model: nn.Module, path: Path) -> Path:
    save_file(model.state_dict(), path)
    return path


def on_meta(model: Any) -> Any:
    """The same architecture without values."""
    return model.to("meta")


def contents(path: Path) -> dict[str, bytes]:
    """Name -> bytes of each file of a folder."""
    return {f.name: f.read_bytes() for f in sorted(path.iterdir()) if f.is_file()}
