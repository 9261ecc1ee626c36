"""A model of your own: a small CNN is trained on characters, then runs on its factors.

    python examples/own_cnn.py

The pictures are digits in the fonts that matplotlib carries, turned, shifted and noisy; the test
fonts are none of the training fonts. Nothing is downloaded, and a run repeats.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from common import OUTPUT, call, latency, parameters
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from torch import Tensor, nn

import tensorlrf

SIZE = 32  # pixels, both sides
EPOCHS = 3
BATCH = 64
FONTS = {
    "train": (
        "DejaVuSans.ttf",
        "DejaVuSans-BoldOblique.ttf",
        "DejaVuSansMono.ttf",
        "DejaVuSerif.ttf",
        "DejaVuSerif-BoldItalic.ttf",
        "STIXGeneral.ttf",
        "STIXGeneralBolIta.ttf",
        "cmr10.ttf",
    ),
    "test": ("DejaVuSans-Bold.ttf", "DejaVuSerif-Italic.ttf", "STIXGeneralBol.ttf", "cmss10.ttf"),
}


class Net(nn.Module):
    """(B, 1, 32, 32) -> (B, 10) logits: five 3 x 3 convolutions and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 32, 64, 128, 128, 128)
        layers: list[nn.Module] = []
        for k, (n_in, n_out) in enumerate(pairwise(widths)):
            conv = nn.Conv2d(n_in, n_out, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(n_out), nn.ReLU()]
            if k < 3:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x).mean((2, 3)))
        return logits


def digits(split: str, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """n pictures (n, 1, 32, 32) in about [-1, 1], and their digits (n,).

    Raises:
        ValueError: the split is none of FONTS.
    """
    if split not in FONTS:
        raise ValueError(f"split must be one of {', '.join(FONTS)}, got {split!r}")
    rng = np.random.default_rng((seed, list(FONTS).index(split)))
    labels = rng.integers(10, size=n)
    drawn = np.stack([_draw(int(digit), str(rng.choice(FONTS[split])), rng) for digit in labels])
    drawn += rng.normal(0, 25, drawn.shape)
    pictures = torch.from_numpy((drawn / 127.5 - 1).astype(np.float32))
    return pictures[:, None], torch.from_numpy(labels)


def _draw(digit: int, name: str, rng: np.random.Generator) -> np.ndarray:
    """(32, 32) float64 in [0, 255]."""
    folder = resources.files("matplotlib") / "mpl-data" / "fonts" / "ttf"
    with resources.as_file(folder / name) as file:
        font = ImageFont.truetype(str(file), int(rng.integers(18, 27)))
    ink = int(rng.integers(120, 256))
    canvas = Image.new("L", (SIZE, SIZE), int(rng.integers(0, 80)))
    centre = (SIZE / 2 + rng.uniform(-3, 3), SIZE / 2 + rng.uniform(-3, 3))
    ImageDraw.Draw(canvas).text(centre, str(digit), font=font, fill=ink, anchor="mm")
    return np.asarray(canvas.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR), np.float64)


def train(x: Tensor, y: Tensor, epochs: int = EPOCHS) -> Net:
    """A trained Net in eval mode. Torch's own random generator stays as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net()
        order = [torch.randperm(len(x)) for _ in range(epochs)]
    steps = epochs * -(-len(x) // BATCH)
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for epoch in order:
        for chosen in epoch.split(BATCH):
            loss = nn.functional.cross_entropy(net(x[chosen]), y[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.eval()


def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of the digits that are read right."""
    found = torch.cat([call(net, part).argmax(1) for part in x.split(256)])
    return float((found == y).float().mean())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--keep", type=float, default=0.25, help="share of parameters (default .25)"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT / "own_cnn.safetensors")
    parser.add_argument("--pictures", type=int, default=4000, help="to train on (default 4000)")
    given = parser.parse_args(arguments)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    console = Console(width=150)

    start = time.perf_counter()
    x, y = digits("train", given.pictures)
    net = train(x, y)
    console.print(f"trained in {time.perf_counter() - start:.0f} s")

    # the five lines: compress, look, tune, save, load
    batches = x[:512].split(64)
    small, report = tensorlrf.compress(net, keep_params=given.keep, calibration=batches)
    console.print(report)
    tensorlrf.tune(small, batches[0])
    tensorlrf.save(small, given.output, overwrite=True)
    again = tensorlrf.load(given.output, Net()).eval()

    unseen, truth = digits("test", 1000)
    seconds = latency({"dense": net, "compressed": again}, unseen[:64])
    for name, model in {"dense": net, "compressed": again}.items():
        console.print(
            f"{name:>10}: {accuracy(model, unseen, truth):.3f} right on unseen fonts, "
            f"{parameters(model):,} parameters, {seconds[name] * 1e3:.1f} ms for 64 pictures"
        )


if __name__ == "__main__":
    main()
