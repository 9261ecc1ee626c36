"""How Sphinx builds the site: `make docs`. Warnings are errors, every reference must resolve, and
no network is asked."""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import result_pages  # noqa: E402  (beside this file, where Sphinx does not look)

project = "tensorlrf"
copyright = "the tensorlrf authors"

extensions = ["myst_parser"]
html_theme = "furo"
html_title = "tensorlrf"
nitpicky = True
myst_heading_anchors = 3


def _on_the_site(app: Sphinx, page: str, source: list[str]) -> None:
    source[0] = result_pages.on_the_site(source[0], depth=page.count("/"))


def setup(app: Sphinx) -> None:
    """Result files become pages, and links to them lead there."""
    result_pages.write(HERE.parent / "bench" / "results", HERE / "results")
    app.connect("source-read", _on_the_site)
