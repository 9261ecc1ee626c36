"""What type checkers see of the decompositions is what they are."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from pathlib import Path

import pytest

from tensorlrf import decomposition

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("stubs", ROOT / "docs" / "stubs.py")
assert SPEC is not None
assert SPEC.loader is not None
stubs = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(stubs)


@pytest.mark.parametrize("path", stubs.GENERATED, ids=lambda path: path.stem)
def test_a_stub_is_up_to_date(path: Path) -> None:
    assert path.read_text() == stubs.GENERATED[path](), "run: make generate"


def test_overloads_take_what_the_function_takes() -> None:
    """Names in order, annotations and defaults, against what runs: but for batch_dims alone."""
    tree = ast.parse(stubs.DECOMPOSITION.read_text())
    overloads = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert {node.name for node in overloads} == {
        f"{fit}{name}" for name in ("svd", "tucker", "tt", "kron", "blr") for fit in ("", "fit_")
    }
    for node in overloads:
        runs = inspect.signature(getattr(decomposition, node.name))
        given = node.args
        defaults = [None] * (len(given.args) - len(given.defaults)) + given.defaults
        told = [
            (one.arg, ast.unparse(one.annotation or given), default and ast.literal_eval(default))
            for one, default in [
                *zip(given.args, defaults, strict=True),
                *zip(given.kwonlyargs, given.kw_defaults, strict=True),
            ]
        ]
        empty = inspect.Parameter.empty
        taken = [
            (p.name, p.annotation.replace('"', "'"), None if p.default is empty else p.default)
            for p in runs.parameters.values()
        ]
        assert [one for one in told if one[0] != "batch_dims"] == taken[:-1]
        assert taken[-1] == ("batch_dims", "int", 0)
        assert ast.unparse(node.returns or given) in (
            runs.return_annotation,
            runs.return_annotation.partition(" | ")[0],
        )
    assert len(overloads) == 20
