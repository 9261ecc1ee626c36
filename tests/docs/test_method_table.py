"""The page on formats tells what the methods declare."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("method_table", ROOT / "docs" / "method_table.py")
assert SPEC is not None
assert SPEC.loader is not None
method_table = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(method_table)


def test_the_table_of_methods_is_up_to_date() -> None:
    page = (ROOT / "docs" / "formats.md").read_text()
    assert page.count(method_table.HEAD) == 1
    assert method_table.renewed(page) == page, "run: python docs/method_table.py"
