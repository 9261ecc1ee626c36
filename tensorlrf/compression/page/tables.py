"""Tables that are whole without a script, and that one sorts and searches with it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tensorlrf.compression.page.markup import Markup, element, text

NAME, WORDS, LONG, NUMBER = "", "w", "l", "n"
"""What a column holds: the name of its row, a few words, more of them, or numbers."""

PLAIN = re.compile(r"[\d,]*\.?\d+(e[+-]?\d+)?%?( \(.*\))?")
"""A number as the script reads it from its words: all of a column must be of one unit."""


@dataclass(frozen=True)
class Number:
    """A number of a cell, which may be unknown.

    value  to sort by
    shown  in words
    bar    whether a bar below it shows the value as a share
    """

    value: float | None
    shown: str
    bar: bool = False


Cell = str | Number


def table(
    name: str,
    caption: str,
    columns: Sequence[tuple[str, str]],
    rows: Iterable[Sequence[Cell]],
    *,
    searched: str = "",
) -> Markup:
    """Cells under a header.

    name      once a page
    columns   (what it is called, what it holds); the first one holds names
    searched  what the rows are called, in a search field above the table; none where it is empty
    """
    kinds = [kind for _, kind in columns]
    heads = [element("th", _of(kind, {"scope": "col"}), called) for called, kind in columns]
    body = [element("tr", {}, *map(_cell, row, kinds)) for row in rows]
    about = {"id": name, "data-sort": ""} | ({"data-search": searched} if searched else {})
    inside = element(
        "table",
        about,
        element("caption", {"id": f"{name}-caption"}, element("span", {}, caption)),
        element("thead", {}, element("tr", {}, *heads)),
        element("tbody", {}, Markup("\n"), Markup("\n".join(body))),
    )
    region = {"class": "scroll", "role": "region", "aria-labelledby": f"{name}-caption"}
    return element("div", region | {"tabindex": "0"}, inside)


def _cell(cell: Cell, kind: str) -> Markup:
    if isinstance(cell, str):
        if kind == NAME:
            # Long names are broken at their dots.
            broken = Markup(text(cell).replace(".", ".<wbr>"))
            return element("th", {"scope": "row"}, broken)
        return element("td", _of(kind, {}), cell)
    about: dict[str, str] = {}
    if cell.value is not None and not PLAIN.fullmatch(cell.shown):
        about["data-v"] = f"{cell.value:.6g}"
    if cell.bar and cell.value is not None:
        about["style"] = f"--k:{min(1.0, max(0.0, cell.value)):.3g}"
        return element("td", {"class": "n bar"} | about, cell.shown)
    return element("td", _of(kind, about), cell.shown)


def _of(kind: str, about: dict[str, str]) -> dict[str, str]:
    return {"class": kind} | about if kind else about
