"""A diffusion model on its factors, by the calls of diffusers: a UNet in a pipeline.

    python examples/with_diffusers.py

The weights are random, so that nothing is downloaded: the pictures are noise, and what is shown is
that the pipeline is saved, loaded and run as any other. Needs tensorlrf[diffusers].
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import OUTPUT, parameters
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

import tensorlrf
import tensorlrf.diffusers

STEPS = 4


def pipeline(width: int = 32) -> DDIMPipeline:
    """Pictures of 16 x 16 from noise, by a UNet with convolutions and attention."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=16, layers_per_block=1, block_out_channels=(width, 2 * width),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"), norm_num_groups=8,
        )  # fmt: skip
    return DDIMPipeline(unet.eval(), DDIMScheduler())


def batches(n: int = 12) -> list[dict[str, Any]]:
    """What the UNet is called with: noisy pictures, each at a time of its own."""
    draws = torch.Generator().manual_seed(1)
    return [
        {
            "sample": torch.randn(8, 3, 16, 16, generator=draws),
            "timestep": torch.randint(0, 1000, (8,), generator=draws),
        }
        for _ in range(n)
    ]


def pictures(of: DDIMPipeline) -> np.ndarray:
    """(2, 16, 16, 3) in [0, 1], the same noise each time."""
    draws = torch.Generator().manual_seed(2)
    of.set_progress_bar_config(disable=True)
    made: np.ndarray = of(2, draws, num_inference_steps=STEPS, output_type="np").images
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", type=float, default=0.5, help="share of parameters (default .5)")
    parser.add_argument("--output", type=Path, default=OUTPUT / "pictures-small")
    given = parser.parse_args(arguments)

    whole = pipeline()
    before = parameters(whole.unet)
    whole.unet, _ = tensorlrf.compress(
        whole.unet, keep_params=given.keep, calibration=batches(), skip=["conv_in", "conv_out"]
    )
    print(f"parameters of the UNet: {before:,} to {parameters(whole.unet):,}")
    whole.save_pretrained(given.output)
    again = DDIMPipeline.from_pretrained(given.output)
    apart = float(np.abs(pictures(again) - pictures(whole)).max())
    print(f"pictures of the pipeline that was saved and loaded differ by at most {apart}")


if __name__ == "__main__":
    main()
