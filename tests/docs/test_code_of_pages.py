"""The code of the pages runs, on a layer, a model and inputs that it supposes."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tensorlrf

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    "README.md",
    "docs/layers_and_paths.md",
    "docs/convolutions.md",
    "docs/ranks_at_run_time.md",
    "docs/attention.md",
    "docs/training.md",
    "docs/shared_bases.md",
    "docs/evaluate.md",
    "docs/nonnegative.md",
    "docs/honest_cp.md",
    "docs/sums_and_codes.md",
    "docs/completion.md",
    "docs/generalized.md",
    "docs/skeletons.md",
    "docs/bayesian.md",
    "docs/sparse.md",
    "docs/spectra.md",
    *(
        pytest.param(f"docs/{n}.md", marks=pytest.mark.slow)
        for n in ("start", "compress", "formats", "tensor_formats")
    ),
]


class Net(nn.Module):
    """Images to features, with layers of the names that the pages use."""

    def __init__(self, n_layers: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 64, 3, padding=1)
        self.layers = nn.ModuleList(Block() for _ in range(n_layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv(x).flatten(2).mean(2)
        for layer in self.layers:
            h = layer(h)
        return h


class Block(nn.Module):
    """One projection and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"proj": nn.Linear(64, 64)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(64, 256), "fc2": nn.Linear(256, 64)})

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        h = h + self.attn["proj"](h)
        return h + self.mlp["fc2"](torch.relu(self.mlp["fc1"](h)))


def supposed(page: str) -> dict[str, Any]:
    """What the code of a page does not make itself."""
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(16, 64, 3, padding=1), nn.Linear(128, 128)
    batches = [torch.rand(8, 16, 6, 6) for _ in range(6)]
    names: dict[str, Any] = {
        "tensorlrf": tensorlrf,
        "torch": torch,
        "conv": conv,
        "bias": conv.bias,
        "x": torch.rand(2, 16, 9, 9),
        "Net": Net,
        "model": Net(),
        "linear": linear,
        "batches": batches,
        "loader": batches,
        "batch": batches[0],
        "example": batches[0],
        "small": tensorlrf.compress(Net(), keep_params=0.5, progress=False)[0],
    }
    if page == "docs/compress.md":
        names["model"] = Net(n_layers=12)
        names["accuracy"] = names["accuracy_on_others"] = lambda model: 1.0
    if page == "docs/evaluate.md":
        names["held_out"] = batches[4:]
        names["labels"] = [k % 2 for k in range(16)]
    if page == "docs/completion.md":
        planted = tensorlrf.CPFactors(torch.ones(2), tuple(torch.rand(n, 2) for n in (9, 8, 7)))
        readings = planted.to_dense().masked_fill(torch.rand(9, 8, 7) < 0.3, torch.nan)
        names |= {"readings": readings, "ratings": readings.flatten(1)}
        names["variance"] = torch.ones(9, 8, 7)
    if page == "docs/bayesian.md":
        names["tensor"] = torch.rand(7, 6, 5)
    if page == "docs/spectra.md":
        asked = torch.rand(3, 16, 6, 6)
        expected = Net()(asked).detach()
        names["evaluate"] = names["on_other_data"] = lambda m: -float((m(asked) - expected).norm())
    if page == "docs/formats.md":
        inputs = torch.rand(128, 400)
        names |= {"weight": linear.weight, "weights": torch.rand(3, 128, 128), "x": inputs.T}
        names |= {"G": inputs @ inputs.T / 400, "gram": (inputs @ inputs.T / 400).double()}
        names["embedding"] = nn.Embedding(500, 128)
    return names


def code(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.S | re.M)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.filterwarnings("ignore::tensorlrf.errors.TensorlrfWarning")  # toys are small
def test_it_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tensorlrf, "tune", functools.partial(tensorlrf.tune, seconds=1e-3))
    with torch.random.fork_rng(devices=[]):
        names = supposed(page)
        for block in code(page):
            exec(compile(block, page, "exec"), names)
