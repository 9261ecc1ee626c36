"""A page as a value: sections under a title, and the one file that they become."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from tensorlrf.compression.page.markup import Markup, element, joined
from tensorlrf.errors import ArgumentError
from tensorlrf.files.arguments import PathLike, as_path
from tensorlrf.files.replace import replacing

SUFFIXES = (".html", ".htm")

GENERATOR = str(element("meta", {"name": "generator", "content": "tensorlrf"}))
"""The mark by which a page of ours is known, within the first `HEAD` bytes."""

HEAD = 4096


@dataclass(frozen=True)
class Section:
    """A part of a page.

    name     by which links find it, once a page
    heading  in words
    parts    one below the other
    """

    name: str
    heading: str
    parts: tuple[Markup, ...]


@dataclass(frozen=True)
class Page:
    """What is told, under a title.

    title     of the whole
    lead      the sentence below it
    sections  in their order
    """

    title: str
    lead: str
    sections: Sequence[Section]

    def html(self) -> str:
        """One file: its style and its script are in it, and it asks for nothing else."""
        style, script = _own("page.css"), _own("page.js")
        head = [
            element("meta", {"charset": "utf-8"}),
            Markup(GENERATOR),
            element("meta", {"http-equiv": "Content-Security-Policy", "content": _policy(script)}),
            element("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
            element("meta", {"name": "color-scheme", "content": "light dark"}),
            element("title", {}, self.title),
            element("style", {}, style),
        ]
        links = [
            element("li", {}, element("a", {"href": f"#{part.name}"}, part.heading))
            for part in self.sections
        ]
        body = [
            element("a", {"class": "skip", "href": "#main"}, "To the content"),
            element("header", {}, element("h1", {}, self.title), element("p", {}, self.lead)),
            element("nav", {"aria-label": "Sections"}, element("ul", {}, *links)),
            element("main", {"id": "main", "tabindex": "-1"}, *map(_section, self.sections)),
            element("script", {}, script),
        ]
        html = element(
            "html",
            {"lang": "en"},
            element("head", {}, joined(head, "\n")),
            element("body", {}, joined(body, "\n")),
        )
        return f"<!doctype html>\n{html}\n"

    def write(self, path: PathLike) -> None:
        """To a file, all of it or nothing; one that is there is replaced.

        Raises ArgumentError for a path that is none, or of another suffix, FileError where it
        cannot be written.
        """
        target = check_path(path)
        with replacing(target, overwrite=True) as part:
            part.write_text(self.html(), encoding="utf-8", newline="\n")


def is_page(path: Path) -> bool:
    """Whether a file is a page that `Page.write` has written."""
    try:
        with path.open("rb") as file:
            return GENERATOR.encode() in file.read(HEAD)
    except OSError:
        return False


def check_path(path: PathLike, argument: str = "path") -> Path:
    """The path of a page. Raises ArgumentError for another suffix."""
    target = as_path(path, argument)
    if target.suffix.lower() not in SUFFIXES:
        raise ArgumentError(
            f"{argument}={os.fspath(path)!r}: a page is written as .html; give such a name"
        )
    return target


def check_texts(title: str | None, date: str | None) -> None:
    """Raise ArgumentError where one of them is no text."""
    for argument, value in (("title", title), ("date", date)):
        if value is not None and not isinstance(value, str):
            raise ArgumentError(f"{argument}={value!r} must be a text, as it is to be read")


class Paged:
    """A value of which there is a page."""

    def to_html(self, path: PathLike, *, title: str | None = None, date: str | None = None) -> None:
        """Write a page that one can show: one file, which asks no network for anything.

        The same value and arguments give the same bytes. A page that is there is replaced.

        Parameters
        ----------
        path : str or path
            Of the page, with the suffix .html.
        title : str, optional
            Of the page.
        date : str, optional
            As it is to be read; without it the page tells none.

        Raises
        ------
        ArgumentError
            For another suffix.
        FileError
            Where the page cannot be written.
        """
        check_texts(title, date)
        self._page(title, date).write(path)

    def _page(self, title: str | None, date: str | None) -> Page:
        raise NotImplementedError


def _section(part: Section) -> Markup:
    heading = element("h2", {"id": f"{part.name}-heading"}, part.heading)
    about = {"id": part.name, "aria-labelledby": f"{part.name}-heading"}
    return element("section", about, Markup("\n"), heading, *part.parts)


def _own(name: str) -> Markup:
    return Markup(files(__package__).joinpath(name).read_text(encoding="utf-8"))


def _policy(script: str) -> str:
    """What a browser lets the page do: run its own script, and fetch nothing."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
