"""Words rendered on photographs, with the box of each word: scenes for a text detector.

The words come from a public-domain text, the fonts lie inside matplotlib and the pictures inside
scikit-image, so that nothing is downloaded. The three splits share no word, font, picture or seed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 512, 384
TEXT = Path(__file__).with_name("alice.txt")
SHORTEST_WORD = 3
FONT_SIZES = (18, 40)  # pixels to the em, both ends included
MARGIN = 14  # empty pixels kept around a word, so that two words are never one instance
CONTRAST = 70.0  # least distance in luminance, of 255, between ink and four fifths of its ground
COLOURS = 40  # colours tried for one word
PLACEMENTS = 80  # positions tried for the words of one scene


@dataclass(frozen=True)
class Split:
    """What the scenes of one split are made from."""

    seed: int
    share: int  # which third of the shuffled words
    fonts: tuple[str, ...]
    pictures: tuple[str, ...]


@dataclass(frozen=True)
class Scene:
    """image (H, W, 3) uint8; boxes (n, 4) float64, x0 y0 x1 y1 of the ink in pixels; n words."""

    image: np.ndarray
    boxes: np.ndarray
    words: tuple[str, ...]


SPLITS = {
    "calibration": Split(
        seed=101,
        share=0,
        fonts=(
            "DejaVuSans.ttf",
            "DejaVuSerif-Bold.ttf",
            "DejaVuSansMono-Oblique.ttf",
            "STIXGeneralBolIta.ttf",
            "cmtt10.ttf",
        ),
        pictures=("chelsea.png", "brick.png", "coins.png", "hubble_deep_field.jpg", "rocket.jpg"),
    ),
    "validation": Split(
        seed=202,
        share=1,
        fonts=(
            "DejaVuSansMono.ttf",
            "DejaVuSerif-Italic.ttf",
            "DejaVuSans-BoldOblique.ttf",
            "STIXGeneral.ttf",
            "cmb10.ttf",
        ),
        pictures=("camera.png", "grass.png", "ihc.png", "motorcycle_left.png"),
    ),
    "test": Split(
        seed=303,
        share=2,
        fonts=(
            "DejaVuSans-Bold.ttf",
            "DejaVuSans-Oblique.ttf",
            "DejaVuSerif.ttf",
            "DejaVuSansMono-Bold.ttf",
            "STIXGeneralBol.ttf",
            "cmss10.ttf",
        ),
        pictures=("astronaut.png", "coffee.png", "gravel.png", "moon.png", "retina.jpg"),
    ),
}


def find_split(name: str) -> Split:
    """The split of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {name!r}")
    return SPLITS[name]


@cache
def words_of(name: str) -> tuple[str, ...]:
    """The distinct words of one split, in lower case; no two splits share a word."""
    found = re.findall(r"[a-z]+", TEXT.read_text(encoding="utf-8").lower())
    distinct = sorted({word for word in found if len(word) >= SHORTEST_WORD})
    order = np.random.default_rng(0).permutation(len(distinct))
    shuffled = [distinct[i] for i in order]
    return tuple(shuffled[find_split(name).share :: len(SPLITS)])


@cache
def _picture(name: str) -> Image.Image:
    with resources.as_file(resources.files("skimage") / "data" / name) as file:
        return Image.open(file).convert("RGB")


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    folder = resources.files("matplotlib") / "mpl-data" / "fonts" / "ttf"
    with resources.as_file(folder / name) as file:
        return ImageFont.truetype(str(file), size)


def make_scene(name: str, index: int) -> Scene:
    """Scene number `index` of a split; the same pixels whenever it is asked for.

    Raises:
        ValueError: the split is unknown or the index negative.
    """
    split = find_split(name)
    if index < 0:
        raise ValueError(f"index must be at least 0, got {index}")
    rng = np.random.default_rng((split.seed, index))
    canvas = _background(split, index, rng)
    words, boxes = [], np.empty((0, 4))
    for _ in range(PLACEMENTS):
        word = _spell(str(rng.choice(words_of(name))), rng)
        low, high = FONT_SIZES
        font = _font(str(rng.choice(split.fonts)), int(rng.integers(low, high + 1)))
        box = _place(word, font, rng)
        if box is None or _touches(box, boxes):
            continue
        colour = _ink(np.asarray(canvas.crop(box).convert("L")), rng)
        if colour is None:
            continue
        left, top, _, _ = font.getbbox(word)
        ImageDraw.Draw(canvas).text((box[0] - left, box[1] - top), word, font=font, fill=colour)
        words.append(word)
        boxes = np.vstack((boxes, box))
    return Scene(np.asarray(canvas), boxes, tuple(words))


def make_scenes(name: str, n_scenes: int) -> list[Scene]:
    """The first `n_scenes` scenes of a split."""
    return [make_scene(name, index) for index in range(n_scenes)]


def scenes_with_words(name: str, n_words: int) -> Iterator[Scene]:
    """Scenes of a split, in order, until they hold at least `n_words` words."""
    index = 0
    while n_words > 0:
        scene = make_scene(name, index)
        yield scene
        n_words -= len(scene.words)
        index += 1


def _background(split: Split, index: int, rng: np.random.Generator) -> Image.Image:
    """A random part of one picture, mirrored or not; pictures take turns."""
    picture = _picture(split.pictures[index % len(split.pictures)])
    largest = min(picture.width / WIDTH, picture.height / HEIGHT)
    scale = largest * rng.uniform(0.7, 1.0)
    width, height = scale * WIDTH, scale * HEIGHT
    x0, y0 = rng.uniform(0, picture.width - width), rng.uniform(0, picture.height - height)
    part = picture.resize(
        (WIDTH, HEIGHT), Image.Resampling.BICUBIC, box=(x0, y0, x0 + width, y0 + height)
    )
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part


def _spell(word: str, rng: np.random.Generator) -> str:
    return (word, word.capitalize(), word.upper())[rng.choice(3, p=(0.5, 0.3, 0.2))]


def _place(
    word: str, font: ImageFont.FreeTypeFont, rng: np.random.Generator
) -> tuple[int, int, int, int] | None:
    """A random ink box for the word inside the scene; None where the word is too wide."""
    left, top, right, bottom = font.getbbox(word)
    width, height = int(right - left), int(bottom - top)
    if width + 2 * MARGIN > WIDTH:
        return None
    x = int(rng.integers(MARGIN, WIDTH - MARGIN - width + 1))
    y = int(rng.integers(MARGIN, HEIGHT - MARGIN - height + 1))
    return x, y, x + width, y + height


def _touches(box: tuple[int, int, int, int], boxes: np.ndarray) -> bool:
    x0, y0, x1, y1 = box
    apart = (
        (x0 - MARGIN >= boxes[:, 2])
        | (x1 + MARGIN <= boxes[:, 0])
        | (y0 - MARGIN >= boxes[:, 3])
        | (y1 + MARGIN <= boxes[:, 1])
    )
    return not bool(apart.all())


def _ink(ground: np.ndarray, rng: np.random.Generator) -> tuple[int, int, int] | None:
    """A random colour that stands out from the (h, w) luminances under it; None where none does."""
    for _ in range(COLOURS):
        colour = rng.integers(0, 256, size=3)
        distance = np.abs(ground - colour @ (0.299, 0.587, 0.114))
        if np.percentile(distance, 20) >= CONTRAST:
            return int(colour[0]), int(colour[1]), int(colour[2])
    return None
