"""From the maps of a text detector to word boxes, and from boxes to precision, recall and F1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from craft import normalize
from PIL import Image, ImageDraw
from scenes import Scene
from scipy import ndimage
from torch import Tensor

TEXT_THRESHOLD = 0.7  # a word has a character at least this sure
LOW_TEXT = 0.4  # pixels of a character
LINK_THRESHOLD = 0.4  # pixels that join two characters
SMALLEST_WORD = 10  # pixels of the map
MAP_STRIDE = 2  # the maps have half the resolution of the image
MATCH_IOU = 0.5


@dataclass(frozen=True)
class Counts:
    """Words of one scene or of a set of scenes: matched, found and truly there."""

    matched: int
    found: int
    true: int

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.matched + other.matched, self.found + other.found, self.true + other.true
        )

    @property
    def precision(self) -> float:
        return self.matched / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        return self.matched / self.true if self.true else 0.0

    @property
    def f1(self) -> float:
        """2 P R / (P + R), which is 2 matched / (found + true); 0 where there is nothing."""
        both = self.found + self.true
        return 2 * self.matched / both if both else 0.0


def word_boxes(region: np.ndarray, affinity: np.ndarray) -> np.ndarray:
    """Axis-aligned boxes (n, 4), x0 y0 x1 y1 in image pixels, from two (h, w) maps.

    Characters joined by affinity are one connected component; a component whose surest pixel stays
    below TEXT_THRESHOLD is dropped; the box of its characters is grown as a dilation would grow it,
    since the pixels above LOW_TEXT cover less than the ink (Baek et al. 2019, section 3.4).
    """
    text, link = region > LOW_TEXT, affinity > LINK_THRESHOLD
    labels, _ = ndimage.label(text | link)
    boxes = []
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[rows, columns] == label
        size = int(inside.sum())
        if size < SMALLEST_WORD or region[rows, columns][inside].max() < TEXT_THRESHOLD:
            continue
        ys, xs = np.nonzero(inside & text[rows, columns])
        y0, y1 = rows.start + ys.min(), rows.start + ys.max() + 1
        x0, x1 = columns.start + xs.min(), columns.start + xs.max() + 1
        height, width = inside.shape
        grow = int(2 * np.sqrt(size * min(height, width) / (height * width))) / 2
        boxes.append((x0 - grow, y0 - grow, x1 + grow, y1 + grow))
    h, w = region.shape
    kept = np.clip(np.array(boxes).reshape(-1, 4), 0, (w, h, w, h))
    return MAP_STRIDE * kept.astype(np.float64)


def detect(model: Callable[[Tensor], Tensor], image: np.ndarray) -> np.ndarray:
    """The word boxes (n, 4) that a detector finds in one (H, W, 3) uint8 image."""
    with torch.inference_mode():
        maps = model(normalize(image))[0].float().cpu().numpy()
    return word_boxes(maps[0], maps[1])


def pairwise_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (n, 4) and (m, 4): (n, m)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=-1)  # (n, m)
    area_a = (a[:, 2:] - a[:, :2]).prod(axis=-1)
    area_b = (b[:, 2:] - b[:, :2]).prod(axis=-1)
    joint = area_a[:, None] + area_b[None, :] - shared
    iou: np.ndarray = np.divide(shared, joint, out=np.zeros_like(shared), where=joint > 0)
    return iou


def match(found: np.ndarray, true: np.ndarray, iou: float = MATCH_IOU) -> list[tuple[int, int]]:
    """Pairs (found, true), one to one, best overlap first, each with at least that overlap."""
    overlap = pairwise_iou(found, true)
    pairs: list[tuple[int, int]] = []
    while overlap.size and overlap.max() >= iou:
        i, j = np.unravel_index(int(overlap.argmax()), overlap.shape)
        pairs.append((int(i), int(j)))
        overlap[i, :] = -1
        overlap[:, j] = -1
    return pairs


def count_words(found: np.ndarray, true: np.ndarray) -> Counts:
    """How many of the found boxes are words, by one-to-one matching at IoU .5."""
    return Counts(len(match(found, true)), len(found), len(true))


def evaluate(model: Callable[[Tensor], Tensor], scenes: Sequence[Scene]) -> list[Counts]:
    """Counts of each scene; `total` sums them."""
    return [count_words(detect(model, scene.image), scene.boxes) for scene in scenes]


def total(per_scene: Sequence[Counts]) -> Counts:
    return sum(per_scene, start=Counts(0, 0, 0))


def bootstrap_f1(
    per_scene: Sequence[Counts], *, level: float = 0.95, n_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of F1 over scenes drawn with replacement (Efron 1979)."""
    resampled = _resampled_f1(per_scene, _draws(len(per_scene), n_resamples, seed))
    return _interval(resampled, level)


def bootstrap_f1_difference(
    first: Sequence[Counts],
    second: Sequence[Counts],
    *,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of F1(first) - F1(second), both on the same drawn scenes.

    Raises:
        ValueError: the two are not counts of the same scenes.
    """
    if [counts.true for counts in first] != [counts.true for counts in second]:
        raise ValueError("first and second must be counts of the same scenes, in the same order")
    draws = _draws(len(first), n_resamples, seed)
    return _interval(_resampled_f1(first, draws) - _resampled_f1(second, draws), level)


def _draws(n_scenes: int, n_resamples: int, seed: int) -> np.ndarray:
    if n_scenes == 0:
        raise ValueError("a bootstrap needs the counts of at least one scene, got none")
    return np.random.default_rng(seed).integers(n_scenes, size=(n_resamples, n_scenes))


def _resampled_f1(per_scene: Sequence[Counts], draws: np.ndarray) -> np.ndarray:
    table = np.array([(c.matched, c.found + c.true) for c in per_scene], dtype=np.float64)
    matched, both = np.moveaxis(table[draws].sum(axis=1), -1, 0)  # (n_resamples,) each
    f1: np.ndarray = np.divide(2 * matched, both, out=np.zeros_like(matched), where=both > 0)
    return f1


def _interval(values: np.ndarray, level: float) -> tuple[float, float]:
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(values, (tail, 100 - tail))
    return float(low), float(high)


def draw_boxes(image: np.ndarray, found: np.ndarray, true: np.ndarray) -> Image.Image:
    """The scene with found boxes (green: a word, red: none) and missed words (yellow)."""
    canvas = Image.fromarray(image).copy()
    draw = ImageDraw.Draw(canvas)
    pairs = match(found, true)
    hits, seen = {i for i, _ in pairs}, {j for _, j in pairs}
    for i, box in enumerate(found):
        draw.rectangle(tuple(box), outline=(0, 220, 0) if i in hits else (255, 0, 0), width=2)
    for j, box in enumerate(true):
        if j not in seen:
            draw.rectangle(tuple(box), outline=(255, 220, 0), width=2)
    return canvas


def side_by_side(*pictures: Image.Image, gap: int = 8) -> Image.Image:
    """Pictures of one height in a row, on white."""
    width = sum(picture.width for picture in pictures) + gap * (len(pictures) - 1)
    row = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    x = 0
    for picture in pictures:
        row.paste(picture, (x, 0))
        x += picture.width + gap
    return row
