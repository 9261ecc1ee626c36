"""What each layer has of something: a row for each block, a column for each kind of layer in it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from tensorlrf.compression.page.markup import Markup, element

NUMBER = re.compile(r"(?:^|\.)\d+(?=\.|$)")

LETTER = 6.7
"""Units that a letter is wide, in small print of one width."""

TALLEST = 1400
"""Units, of a picture with more blocks than there is room for at the height of a line."""


def place(name: str) -> tuple[str, str]:
    """(block, kind) of a qualified name: what comes before its last number with that number, and
    the rest; a name without a number is a block of its own."""
    numbers = list(NUMBER.finditer(name))
    if not numbers:
        return name, ""
    end = numbers[-1].end()
    return name[:end].lstrip("."), name[end:].lstrip(".")


def heat_map(name: str, caption: str, told: str, values: Mapping[str, float]) -> Markup:
    """A figure; colours go by the logarithm, and what is 0 has the palest.

    values  of each layer, by its qualified name
    told    what one would see, for those who do not
    """
    grid = _Grid.of(values)
    drawn = [*grid.names(), *grid.cells(), *grid.scale()]
    size = {"viewBox": f"0 0 {grid.wide:.0f} {grid.high:.0f}", "width": f"{grid.wide:.0f}"}
    picture = element(
        "svg",
        size | {"role": "img", "aria-labelledby": f"{name}-told"},
        element("title", {"id": f"{name}-told"}, told),
        *drawn,
    )
    region = {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": caption}
    inside = element("div", region, picture)
    return element("figure", {"id": name}, element("figcaption", {}, caption), inside)


@dataclass(frozen=True)
class _Grid:
    """Of the picture: blocks below each other, kinds beside each other."""

    values: Mapping[str, float]
    blocks: Mapping[str, int]
    kinds: Mapping[str, int]
    left: float
    top: float
    column: float
    row: float
    low: float
    high_value: float

    @classmethod
    def of(cls, values: Mapping[str, float]) -> _Grid:
        places = [place(layer) for layer in values]
        blocks = {block: k for k, block in enumerate(dict.fromkeys(b for b, _ in places))}
        kinds = {kind: k for k, kind in enumerate(dict.fromkeys(k for _, k in places))}
        row = min(18.0, TALLEST / max(1, len(blocks)))
        longest = max((len(_short(block)) for block in blocks), default=0)
        slanted = max((len(_short(kind)) for kind in kinds), default=0)
        known = [v for v in values.values() if v > 0 and math.isfinite(v)]
        return cls(
            values, blocks, kinds,
            left=LETTER * longest + 12,
            top=0.72 * LETTER * slanted + 14,
            column=34.0 if len(kinds) > 1 else 120.0,
            row=row,
            low=min(known, default=0.1),
            high_value=max(known, default=1.0),
        )  # fmt: skip

    @property
    def wide(self) -> float:
        over = 0.72 * LETTER * max((len(_short(kind)) for kind in self.kinds), default=0)
        return self.left + max(len(self.kinds) * self.column + over, 250.0)

    @property
    def high(self) -> float:
        return self.top + len(self.blocks) * self.row + 44

    def names(self) -> list[Markup]:
        """Of all kinds, and of as many blocks as can be read."""
        drawn = []
        for kind, k in self.kinds.items():
            at = f"translate({self.left + (k + 0.5) * self.column:.1f} {self.top - 6:.1f})"
            turned = {"class": "soft mono", "transform": f"{at} rotate(-45)"}
            drawn.append(element("text", turned, _short(kind)))
        every = math.ceil(12 / self.row)
        for block, k in self.blocks.items():
            if k % every == 0:
                down = self.top + k * self.row + min(self.row, 12.0) / 2 + 4
                down += max(0.0, self.row - 12) / 2
                about = {"class": "soft mono", "x": f"{self.left - 8:.1f}", "y": f"{down:.1f}"}
                drawn.append(element("text", about | {"text-anchor": "end"}, _short(block)))
        return drawn

    def cells(self) -> list[Markup]:
        gap = 1.5 if self.row > 8 else 0.0
        drawn = []
        for layer, value in self.values.items():
            block, kind = place(layer)
            across = self.left + self.kinds[kind] * self.column
            down = self.top + self.blocks[block] * self.row
            about = {
                "class": "cell" if value > 0 else "none",
                "x": f"{across:.4g}",
                "y": f"{down:.5g}",
                "width": f"{self.column - gap:.4g}",
                "height": f"{self.row - gap:.3g}",
            }
            if value > 0:
                about["fill-opacity"] = f"{self._dark(value):.2g}"
            drawn.append(element("rect", about, element("title", {}, f"{layer}: {value:.3g}")))
        return drawn

    def scale(self) -> list[Markup]:
        """From the palest to the darkest, with what they stand for."""
        down = self.top + len(self.blocks) * self.row + 16
        drawn = []
        for k in range(12):
            about = {"class": "cell", "x": f"{self.left + 10 * k:.4g}", "y": f"{down:.5g}"}
            size = {"width": "10", "height": "8", "fill-opacity": f"{_shade(k / 11):.2g}"}
            drawn.append(element("rect", about | size))
        for words, across, anchor in (
            (f"{self.low:.2g}", self.left, "start"),
            (f"{self.high_value:.2g}", self.left + 120, "end"),
        ):
            at = {"x": f"{across:.4g}", "y": f"{down + 22:.5g}", "text-anchor": anchor}
            drawn.append(element("text", {"class": "soft"} | at, words))
        return drawn

    def _dark(self, value: float) -> float:
        if not self.high_value > self.low:
            return 1.0
        return _shade(math.log(value / self.low) / math.log(self.high_value / self.low))


def _shade(part: float) -> float:
    return 0.07 + 0.93 * min(1.0, max(0.0, part))


def _short(name: str) -> str:
    """A name that there is room for: its end, which tells it from others."""
    return name if len(name) <= 34 else "…" + name[-33:]
