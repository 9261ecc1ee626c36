"""What sections are made of: sentences, figures, lists, code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tensorlrf.compression.page.markup import Markup, element


@dataclass(frozen=True)
class Figure:
    """A number at the head of a page.

    label  what it is of
    value  in a word
    told   the words below it
    share  in [0, 1] of a bar below, where it has one
    """

    label: str
    value: str
    told: str = ""
    share: float | None = None


def figures(of: Iterable[Figure]) -> Markup:
    """Side by side, as many as there is room for."""
    return element("dl", {"class": "figures"}, *map(_figure, of))


def _figure(one: Figure) -> Markup:
    told = [element("span", {"class": "told"}, one.told)] if one.told else []
    bar = []
    if one.share is not None:
        style = f"--k:{min(1.0, max(0.0, one.share)):.4f}"
        bar = [element("span", {"class": "share", "style": style, "aria-hidden": "true"}, "")]
    value = element("strong", {}, one.value)
    return element("div", {}, element("dt", {}, one.label), element("dd", {}, value, *bar, *told))


def paragraph(*parts: str) -> Markup:
    """Running text."""
    return element("p", {}, *parts)


def note(*parts: str) -> Markup:
    """Running text that explains what is below it."""
    return element("p", {"class": "note"}, *parts)


def bullets(lines: Iterable[str]) -> Markup:
    """A line each."""
    return element("ul", {"class": "lines"}, *(element("li", {}, line) for line in lines))


def facts(of: Sequence[tuple[str, str]]) -> Markup:
    """Names with what they stand for, beside each other."""
    rows = (
        element("div", {}, element("dt", {}, name), element("dd", {}, value)) for name, value in of
    )
    return element("dl", {"class": "facts"}, *rows)


def code(text: str) -> Markup:
    """Lines of a program."""
    lines = [element("span", {}, line) for line in text.split("\n")]
    inside = Markup("\n".join(lines))
    return element("pre", {"tabindex": "0"}, element("code", {}, inside))
