"""HTML in which whatever comes from outside is text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

from tensorlrf.errors import printable

VOID = ("meta", "path", "line", "rect", "circle")
"""Elements without an end: those of HTML, and those of SVG that are written so here."""


class Markup(str):
    """HTML that is written as it is; any other text is escaped."""

    __slots__ = ()


def text(value: str) -> Markup:
    """Characters that a page shows and never acts upon, control characters as escapes."""
    return Markup(escape(printable(value), quote=True))


def element(tag: str, attributes: Mapping[str, str] | None = None, *parts: str) -> Markup:
    """An element; parts that are no Markup are text. An attribute whose value is empty has none."""
    words = [tag]
    for name, value in (attributes or {}).items():
        words.append(f'{name}="{text(value)}"' if value else name)
    start = " ".join(words)
    if not parts and tag in VOID:
        return Markup(f"<{start}>" if tag == "meta" else f"<{start}/>")
    return Markup(f"<{start}>{joined(parts)}</{tag}>")


def joined(parts: Iterable[str], between: str = "") -> Markup:
    """Parts one after the other."""
    return Markup(between.join(p if isinstance(p, Markup) else text(p) for p in parts))
