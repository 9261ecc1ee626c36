"""What the reference lists, by the code of the site."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location(
    "reference_pages", ROOT / "docs" / "reference_pages.py"
)
assert SPEC is not None
assert SPEC.loader is not None
_pages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(_pages)

listed, named = _pages.listed, _pages.named
