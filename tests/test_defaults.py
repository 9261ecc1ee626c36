"""Torch's default device and dtype are the user's: nothing of ours is made with them.

Every call that makes a tensor says on which device, and of which dtype where that does not follow
from its values.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*ROOT.glob("tensorlrf/**/*.py"), *ROOT.glob("kernels/**/*.py")])

WHOLE = {"arange", "randint", "randperm", "tril_indices", "triu_indices"}  # int64 of themselves
READ = {"tensor", "as_tensor", "full"}  # of the dtype of Python's numbers: integers do without
FLOATS = {"zeros", "ones", "eye", "empty", "rand", "randn", "linspace", "logspace", "empty_strided"}


def made_by_default(path: Path) -> list[str]:
    """Calls `torch.zeros(...)` and the like without a device or a dtype, as file:line."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner, name = node.func.value, node.func.attr
        if not (isinstance(owner, ast.Name) and owner.id == "torch"):
            continue
        given = {keyword.arg for keyword in node.keywords}
        if None in given or name not in WHOLE | READ | FLOATS:  # None: **options
            continue
        if "device" not in given or (name in FLOATS and "dtype" not in given):
            found.append(f"{path.relative_to(ROOT)}:{node.lineno} torch.{name}")
    return found


@pytest.mark.parametrize("package", ["tensorlrf", "kernels"])
def test_every_tensor_is_made_where_and_as_it_says(package: str) -> None:
    found = [
        at
        for path in SOURCES
        if path.is_relative_to(ROOT / package)
        for at in made_by_default(path)
    ]
    assert not found, "\n".join(found)
