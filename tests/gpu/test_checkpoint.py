"""A checkpoint on a GPU: by weights, and from block to block.

Needs torch, numpy, opt_einsum and pytest alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf.files.safetensors import write

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("ieee_float32")]

GPU = "cuda"
BLOCK = 2 * 512 * 1024 * 4
"""Bytes of the weights of a block, without biases."""


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(512, 1024), nn.Linear(1024, 512)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.down(self.up(x).relu())
        return y


def network(blocks: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(blocks))).eval()


def batches() -> list[Tensor]:
    draws = torch.Generator("cpu").manual_seed(0)
    return [
        torch.randn(2048, 512, generator=draws, device="cpu", dtype=torch.float32) for _ in range(3)
    ]


@pytest.mark.parametrize("inputs", ["original", "prefix", "independent", None])
def test_as_on_the_cpu(tmp_path: Path, inputs: str | None) -> None:
    source = tmp_path / "a.safetensors"
    write(source, network(2).state_dict(), {})
    call: dict[str, Any] = {"keep_params": 0.3, "progress": False}
    if inputs is not None:
        blank = network(2).to("meta")
        call |= {"calibration": batches(), "inputs": inputs, "model": blank}
    made = []
    for device in ("cpu", GPU):
        out = tmp_path / f"{device}.safetensors"
        tensorlrf.compress_checkpoint(source, out, device=device, **call)
        with torch.no_grad():
            made.append(tensorlrf.load(out, network(2))(batches()[0]))
    # Factors of both are of float32 spectra, whose sums are added in another order.
    torch.testing.assert_close(made[0], made[1], rtol=1e-3, atol=1e-3)


def test_one_block_is_there(tmp_path: Path) -> None:
    """More of them take no more memory of the GPU."""
    peaks = []
    for blocks in (2, 2, 10):  # the first one has libraries take what they keep
        source = tmp_path / f"{blocks}.safetensors"
        write(source, network(blocks).state_dict(), {})
        torch.cuda.reset_peak_memory_stats()
        tensorlrf.compress_checkpoint(
            source, tmp_path / "out.safetensors", keep_params=0.3, progress=False, device=GPU,
            calibration=batches(), model=network(blocks).to("meta"), overwrite=True,
        )  # fmt: skip
        peaks.append(torch.cuda.max_memory_allocated())
        assert torch.cuda.memory_allocated() < peaks[-1]
    assert peaks[2] < peaks[1] + BLOCK
