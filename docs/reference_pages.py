"""The public names: what the pages of the reference list."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

PAGES = sorted((Path(__file__).parent / "reference").glob("*.md"))


def listed() -> list[str]:
    """Qualified names, in the order of the pages."""
    lines = [line for page in PAGES for line in page.read_text().splitlines()]
    return [line.strip() for line in lines if re.fullmatch(r" +tensorlrf\w*(\.\w+)+", line)]


def named(name: str) -> Any:
    """What has that qualified name."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)
