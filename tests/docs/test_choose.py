"""How to choose: every method has its place, every name is there, the picture says the same."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import tensorlrf
from tensorlrf.decomposition.methods import names

DOCS = Path(__file__).resolve().parents[2] / "docs"


def _choose() -> Any:
    """docs/ is no package: Sphinx reads its files where they lie."""
    spec = importlib.util.spec_from_file_location("choose", DOCS / "choose.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


choose = _choose()
ROWS = [row for _, rows in choose.CHOICES.values() for row in rows]
NAMES = {name for _, own, _ in ROWS for name in own}


def test_page_and_picture_are_up_to_date() -> None:
    page = choose.PAGE.read_text("utf-8")
    assert choose.renewed(page) == page, "run: python docs/choose.py"
    assert choose.PICTURE.read_text("utf-8") == choose.picture(), "run: python docs/choose.py"


def test_every_method_has_its_place() -> None:
    assert set(names()) <= NAMES


def test_what_is_named_is_there() -> None:
    for name in NAMES:
        assert hasattr(tensorlrf, name) or hasattr(tensorlrf.decomposition, name), name
    for _, _, page in ROWS:
        assert (DOCS / page).exists(), page


def test_the_picture_shows_what_the_tables_say() -> None:
    shown = re.findall(r'class="name"[^>]*>([^<]+)<', choose.picture())
    assert shown == [name for _, own, _ in ROWS for name in own]
    # Nothing runs out of the picture: a pill ends before the card does.
    ends = [
        int(x) + int(w)
        for x, w in re.findall(r'pill" x="(\d+)" y="\d+" width="(\d+)"', choose.picture())
    ]
    assert max(ends) <= choose.WIDTH - 8
