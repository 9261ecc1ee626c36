"""Points and lines over two axes, as a picture in the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tensorlrf.compression.page.markup import Markup, element

WIDE, HIGH = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 18, 16, 46
"""Room for what is written around, in units of the picture; of a phone's width they are the size of
small print still."""

APART = 13
"""Units between two labels, one above the other."""


@dataclass(frozen=True)
class Point:
    """A mark.

    x, y   its place
    low    how far down, or up, it may be, where that is known
    label  beside it; empty for none
    told   where one points at it
    """

    x: float
    y: float
    low: float | None = None
    label: str = ""
    told: str = ""


@dataclass(frozen=True)
class Series:
    """Points of one kind: "line" (in the accent, joined), "dot" (not joined), "ring" (hollow),
    "step" (a quiet stair without marks), or "square", "diamond", "triangle", "down"."""

    kind: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Axis:
    """What is measured, and whether by its logarithm."""

    label: str
    log: bool = False


def chart(name: str, caption: str, told: str, x: Axis, y: Axis, series: Sequence[Series]) -> Markup:
    """A figure.

    caption  above it
    told     what one would see, for those who do not
    """
    points = [p for one in series for p in one.points]
    lows = [p.low for p in points if p.low is not None and not (y.log and p.low <= 0)]
    across = _Scale([p.x for p in points], x.log, LEFT, WIDE - RIGHT)
    up = _Scale([*(p.y for p in points), *lows], y.log, HIGH - BOTTOM, TOP)
    drawn = [*_axes(x, y, across, up)]
    taken = [place for one in series for place in _taken(one, across, up)]
    for one in series:
        drawn += _series(one, across, up, taken)
    picture = element(
        "svg",
        {
            "class": "chart",
            "viewBox": f"0 0 {WIDE} {HIGH}",
            "role": "img",
            "aria-labelledby": f"{name}-told",
        },
        element("title", {"id": f"{name}-told"}, told),
        *drawn,
    )
    return element("figure", {"id": name}, element("figcaption", {}, caption), picture)


class _Scale:
    """From values to units of the picture."""

    def __init__(self, values: Sequence[float], log: bool, start: float, end: float) -> None:
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        if log:
            low, high = (low, high) if high > low else (low / 2, high * 2)
        else:
            room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
            # A quantity that begins at nothing is drawn from nothing.
            low, high = (0.0 if 0 <= low < 0.25 * high else low - room), high + room
        self.log, self.low, self.high, self.start, self.end = log, low, high, start, end

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, low))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values within, about five."""
        if not self.log:
            step = _round((self.high - self.low) / 5)
            first = math.ceil(self.low / step - 1e-9)
            return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]
        found: list[float] = []
        for digits in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            values = [d * 10.0**k for k in decades for d in digits]
            found = [v for v in values if self.low * 0.999 <= v <= self.high * 1.001]
            if len(found) >= 3:
                break
        return found[:: max(1, len(found) // 6)] or [self.low, self.high]


def _round(step: float) -> float:
    base = 10.0 ** math.floor(math.log10(step))
    return next(m * base for m in (1, 2, 2.5, 5, 10) if m * base >= step * 0.999)


def _axes(x: Axis, y: Axis, across: _Scale, up: _Scale) -> list[Markup]:
    drawn = []
    for value in up.ticks():
        at = up(value)
        drawn.append(_line("grid", LEFT, at, WIDE - RIGHT, at))
        drawn.append(_words(_number(value), LEFT - 8, at + 4, "end"))
    floor = HIGH - BOTTOM
    for value in across.ticks():
        at = across(value)
        drawn.append(_line("grid", at, floor, at, floor + 4))
        drawn.append(_words(_number(value), at, floor + 18, "middle"))
    drawn.append(_words(x.label, (LEFT + WIDE - RIGHT) / 2, HIGH - 8, "middle"))
    middle = f"{(TOP + floor) / 2:.0f}"
    turned = {"transform": f"translate(13 {middle}) rotate(-90)", "text-anchor": "middle"}
    drawn.append(element("text", turned | {"class": "soft"}, y.label))
    return drawn


def _taken(one: Series, across: _Scale, up: _Scale) -> list[tuple[float, float, float]]:
    """(left, right, base) of what labels are not to be written over: marks, and lines."""
    places = [(across(p.x), up(p.y)) for p in one.points]
    found = [(a - 6, a + 6, b + 5) for (a, b), p in zip(places, one.points, strict=True) if p.label]
    ways = list(pairwise(places)) if one.kind == "line" else []
    ways += [
        ((a, b), (a, up(p.low)))
        for (a, b), p in zip(places, one.points, strict=True)
        if p.low is not None
    ]
    for (a, b), (c, d) in ways:
        steps = max(1, round(max(abs(c - a), abs(d - b)) / 6))
        way = ((a + (c - a) * k / steps, b + (d - b) * k / steps) for k in range(steps + 1))
        found += [(x - 1, x + 1, y + 5) for x, y in way]
    return found


def _series(
    one: Series, across: _Scale, up: _Scale, taken: list[tuple[float, float, float]]
) -> list[Markup]:
    places = [(across(p.x), up(p.y)) for p in one.points]
    drawn = []
    if one.kind == "step":
        way = "".join(
            f"H{a:.1f}V{b:.1f}" if k else f"M{a:.1f} {b:.1f}" for k, (a, b) in enumerate(places)
        )
        return [element("path", {"class": "way", "d": way})] if places else []
    if one.kind == "line" and len(places) > 1:
        way = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
        drawn.append(element("path", {"class": "line", "d": way}))
    for p, (a, b) in zip(one.points, places, strict=True):
        if p.low is not None:
            drawn.append(_line("span", a, b, a, min(HIGH - BOTTOM, up(p.low))))
        drawn.append(_mark(one.kind, a, b, p.told))
        if p.label:
            drawn += _label(p.label, a, b, taken)
    return drawn


def _mark(kind: str, a: float, b: float, told: str) -> Markup:
    inside = [element("title", {}, told)] if told else []
    if kind in ("line", "dot", "ring"):
        place = {"cx": f"{a:.1f}", "cy": f"{b:.1f}", "r": "4"}
        return element("circle", {"class": "ring" if kind == "ring" else "mark"} | place, *inside)
    shapes = {
        "square": "m-4.5-4.5h9v9h-9z",
        "diamond": "m0-6l6 6l-6 6l-6-6z",
        "triangle": "m0-5.5l5.5 9.5h-11z",
        "down": "m0 5.5l5.5-9.5h-11z",
    }
    return element("path", {"class": "other", "d": f"M{a:.1f} {b:.1f}{shapes[kind]}"}, *inside)


def _label(words: str, a: float, b: float, taken: list[tuple[float, float, float]]) -> list[Markup]:
    """Above the mark, or below, or on either side: the first place that is free, else none."""
    width = 6.6 * len(words)
    for left, base in ((a - width / 2, b - 10), (a - width / 2, b + 19),
                       (a + 9, b + 4), (a - 9 - width, b + 4)):  # fmt: skip
        inside = left > LEFT and left + width < WIDE and TOP - 6 < base < HIGH - BOTTOM
        free = all(
            base - low >= APART or low - base >= APART or left > end or left + width < start
            for start, end, low in taken
        )
        if inside and free:
            taken.append((left, left + width, base))
            return [_words(words, left + width / 2, base, "middle")]
    return []


def _line(kind: str, a: float, b: float, c: float, d: float) -> Markup:
    ends = {"x1": f"{a:.1f}", "y1": f"{b:.1f}", "x2": f"{c:.1f}", "y2": f"{d:.1f}"}
    return element("line", {"class": kind} | ends)


def _words(words: str, a: float, b: float, anchor: str) -> Markup:
    about = {"class": "soft", "x": f"{a:.1f}", "y": f"{b:.1f}", "text-anchor": anchor}
    return element("text", about, words)


def _number(value: float) -> str:
    if abs(value) < 1e-12:
        return "0"
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
