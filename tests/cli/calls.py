"""The program in this process, and small models for it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from tensorlrf.cli import main


class Result(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that a refusal is."""
        assert self.code == 2, (self.out, self.err)
        assert self.out == ""
        lines = [x for x in self.err.splitlines() if not x.startswith("warning: ")]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        return lines[0]


class Program:
    """`tensorlrf ...` as a function."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Result:
        self._capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = self._capsys.readouterr()
        return Result(code, out, err)


def cnn(seed: int = 0) -> nn.Sequential:
    """Convolutions with a normalisation between, a depthwise one, an embedding, linear layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3),
            nn.BatchNorm2d(16),
            nn.Conv2d(16, 16, 3, groups=16),
            nn.Conv2d(16, 24, 3, stride=2, padding=1, bias=False),
            nn.Flatten(),
            nn.Linear(24 * 16, 32),
            nn.Linear(32, 10),
        ).eval()


def picture() -> torch.Tensor:
    return torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def save_state(model: nn.Module, path: Path) -> Path:
    from safetensors.torch import save_file

    save_file(model.state_dict(), path)
    return path


def listing(folder: Path) -> set[str]:
    """All that lies in it, hidden names too."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
