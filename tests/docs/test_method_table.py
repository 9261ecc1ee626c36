"""The page on formats tells what the methods declare."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from tensorlrf.decomposition.methods import names, registered

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


def test_every_method_says_what_always_holds() -> None:
    assert [name for name in names() if not registered(name).law] == []


def test_a_figure_is_that_of_the_case_that_is_meant() -> None:
    found = method_table.figure("kron: 4096x4096 s4")
    assert found.startswith("265x numpy, 4096x4096 s4: [kron](")
    assert method_table.figure("kron").startswith("43.7x numpy, 1024x1024 s4: ")  # in turn
    assert method_table.figure("formats: monarch") == "[formats](../bench/results/cpu/formats.md)"
    assert method_table.figure("") == method_table.figure("no such file") == ""
