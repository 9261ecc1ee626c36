"""What a line of the kernels' source is: which loop it heads, which operand it loads."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import tensorlrf_kernels

ROOT = Path(tensorlrf_kernels.__file__).parent


def loop_at(file: str, line: int) -> str:
    """The innermost loop of the line as "function.variable", "function.while" for one without; ""
    where there is none. `file` is named by its folder too."""
    inside = [(last - first, name) for first, last, name in _loops(file) if first <= line <= last]
    return min(inside)[1] if inside else ""


def operand_at(file: str, line: int) -> str:
    """The tensor that a `tl.load` of the line reads; "" where there is none."""
    inside = [(last - first, name) for first, last, name in _loads(file) if first <= line <= last]
    return min(inside)[1] if inside else ""


@cache
def _tree(file: str) -> ast.Module:
    path = ROOT.parent / file
    if not path.is_file():
        path = ROOT / file
    return ast.parse(path.read_text() if path.is_file() else "")


@cache
def _loops(file: str) -> list[tuple[int, int, str]]:
    found = []
    for function in ast.walk(_tree(file)):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.While):
                    found.append((node.lineno, node.end_lineno or 0, f"{function.name}.while"))
                elif isinstance(node, ast.For) and not _unrolled(node):
                    name = f"{function.name}.{ast.unparse(node.target)}"
                    found.append((node.lineno, node.end_lineno or 0, name))
    return found


def _unrolled(node: ast.For) -> bool:
    return isinstance(node.iter, ast.Call) and "static_range" in ast.unparse(node.iter.func)


@cache
def _loads(file: str) -> list[tuple[int, int, str]]:
    """Loads, by the first name in their address."""
    found = []
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.load":
            names = [n.id for n in ast.walk(node.args[0]) if isinstance(n, ast.Name)]
            names = [n for n in names if n not in ("tl", "addresses")]
            found.append((node.lineno, node.end_lineno or 0, names[0] if names else ""))
    return found
