"""Words rendered one to a picture, for a recogniser of text: no two splits share a word or a font.

The words are those of a public-domain text and of two corpora of news that gensim carries; the
fonts lie inside matplotlib. Nothing is downloaded, and a run repeats.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
import texts
from PIL import Image, ImageDraw, ImageFont
from scenes import SHORTEST_WORD, SPLITS, TEXT, find_split

HEIGHT, WIDTH = 64, 256
LONGEST_WORD = 11  # letters, which fill the width
FONT_SIZES = (34, 46)  # pixels to the em, both ends included
CONTRAST = 60  # least distance of ink and ground, of 255
NOISE = 6.0  # standard deviation of a pixel


@dataclass(frozen=True)
class Word:
    """text   what is written
    pixels (64, 256) uint8, grey
    """

    text: str
    pixels: np.ndarray


@cache
def vocabulary(split: str) -> tuple[str, ...]:
    """The distinct words of a split, in lower case: a quarter each to calibrate and to choose by,
    and half of them to test."""
    find_split(split)
    corpora = [TEXT.read_text(encoding="utf-8"), *texts.background(), *texts.documents()]
    found = re.findall(r"[a-z]+", " ".join(corpora).lower())
    distinct = sorted({w for w in found if SHORTEST_WORD <= len(w) <= LONGEST_WORD})
    order = np.random.default_rng(0).permutation(len(distinct))
    shuffled = [distinct[i] for i in order]
    first, second = len(shuffled) // 4, len(shuffled) // 2
    parts = {
        "calibration": shuffled[:first],
        "validation": shuffled[first:second],
        "test": shuffled[second:],
    }
    return tuple(parts[split])


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    folder = resources.files("matplotlib") / "mpl-data" / "fonts" / "ttf"
    with resources.as_file(folder / name) as file:
        return ImageFont.truetype(str(file), size)


def make_words(split: str, n: int) -> list[Word]:
    """The first n words of a split, each once: small, Capitalised or in capitals, dark on bright or
    bright on dark.

    Raises:
        ValueError: the split is unknown, or has fewer words.
    """
    known = vocabulary(split)
    if not 0 < n <= len(known):
        raise ValueError(f"n must be 1 to {len(known)}, the words of {split!r}, got {n}")
    rng = np.random.default_rng(SPLITS[split].seed)
    fonts = SPLITS[split].fonts
    made = []
    for word in known[:n]:
        text = (word, word.capitalize(), word.upper())[int(rng.choice(3, p=(0.6, 0.25, 0.15)))]
        made.append(Word(text, _draw(text, str(rng.choice(fonts)), rng)))
    return made


def _draw(text: str, font_name: str, rng: np.random.Generator) -> np.ndarray:
    size = int(rng.integers(FONT_SIZES[0], FONT_SIZES[1] + 1))
    box = _font(font_name, size).getbbox(text)
    while box[2] - box[0] > WIDTH - 12:
        size -= 2
        box = _font(font_name, size).getbbox(text)
    ground, ink = _tones(rng)
    image = Image.new("L", (WIDTH, HEIGHT), ground)
    free = (WIDTH - (box[2] - box[0]), HEIGHT - (box[3] - box[1]))
    x = int(rng.integers(2, 7))  # a crop begins with its word, and ends where it likes
    y = int(np.clip(free[1] // 2 + rng.integers(-4, 5), 0, max(0, free[1])))
    at = (x - box[0], y - box[1])
    ImageDraw.Draw(image).text(at, text, font=_font(font_name, size), fill=ink)
    noisy = np.asarray(image, dtype=np.float64) + rng.normal(0.0, NOISE, (HEIGHT, WIDTH))
    return noisy.clip(0, 255).astype(np.uint8)


def _tones(rng: np.random.Generator) -> tuple[int, int]:
    """(ground, ink)."""
    while True:
        ground, ink = (int(v) for v in rng.integers(0, 256, 2))
        if abs(ground - ink) >= CONTRAST:
            return ground, ink
