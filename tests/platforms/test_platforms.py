"""Where Unix is not, and where triton is not: as far as that can be posed on this machine."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.platforms import checks

ROOT = Path(__file__).resolve().parents[2]
NAMES = re.compile(r"\b(open|read_text|write_text)\(")
PACKAGES = (ROOT / "tensorlrf", ROOT / "kernels" / "tensorlrf_kernels")


@pytest.fixture(scope="module")
def told() -> dict[str, str]:
    """Check -> how it failed where the system is as `windows.py` poses it; empty where it holds."""
    command = [sys.executable, "-m", "tests.platforms.checks", "--windows"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", checks.CHECKS)
def test_it_holds_on_windows(name: str, told: dict[str, str]) -> None:
    assert not told[name], told[name]


@pytest.mark.parametrize("name", checks.CHECKS)
def test_it_holds_here(name: str, tmp_path: Path) -> None:
    checks.CHECKS[name](tmp_path)


@cache
def calls(package: Path) -> list[tuple[str, str, ast.Call]]:
    """(where, name, call) of all that open files."""
    found = []
    for path in package.rglob("*.py"):
        text = path.read_text("utf-8")
        if not NAMES.search(text):
            continue  # most of them, which saves the time to read their syntax
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                found.append((f"{path}:{node.lineno}", name, node))
    return found


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_text_is_read_and_written_in_an_encoding_that_is_named(package: Path) -> None:
    """The default is that of the system."""
    for where, name, call in calls(package):
        named = {one.arg for one in call.keywords}
        modes = [x.value for x in call.args if isinstance(x, ast.Constant)]
        is_open = name == "open" and isinstance(call.func, ast.Name)
        of_path = name in ("read_text", "write_text") and isinstance(call.func, ast.Attribute)
        if of_path or (is_open and not {"rb", "wb"} & {*modes}):
            assert "encoding" in named or "utf-8" in modes, where


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_what_is_opened_to_be_written_is_opened_as_binary(package: Path) -> None:
    """By `os.open`, which on Windows is for text: each line feed would become two bytes."""
    for where, name, call in calls(package):
        if name == "open":
            flags = {getattr(x, "attr", getattr(x, "id", "")) for x in ast.walk(call)}
            assert "BINARY" in flags or not flags & {"O_WRONLY", "O_RDWR"}, where
