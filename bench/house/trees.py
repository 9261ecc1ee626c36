"""The files of the house as syntax trees, and what every count asks of them."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("tensorlrf", "kernels/tensorlrf_kernels")


@dataclass(frozen=True)
class Count:
    """A row: how many, lines of code where these are counted, and where."""

    number: int
    where: list[str] = field(default_factory=list)
    lines: int | None = None


@cache
def trees() -> dict[str, ast.Module]:
    """Path from the root -> the tree of every file of both packages."""
    paths = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
    return {str(p.relative_to(ROOT)): ast.parse(p.read_text()) for p in paths}


@cache
def trees_of_bench() -> dict[str, ast.Module]:
    """Likewise, of bench/."""
    paths = sorted((ROOT / "bench").rglob("*.py"))
    return {str(p.relative_to(ROOT)): ast.parse(p.read_text()) for p in paths}


def of_folder(folder: str) -> dict[str, ast.Module]:
    """Those below it."""
    return {path: tree for path, tree in trees().items() if path.startswith(f"{folder}/")}


Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST, inside: str = "") -> Iterator[tuple[str, Function]]:
    """(qualified name, function), methods and inner ones too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = f"{inside}{node.name}"
            if not isinstance(node, ast.ClassDef):
                yield name, node
            yield from functions(node, f"{name}.")
        else:
            yield from functions(node, inside)


def own_nodes(function: Function) -> Iterator[ast.AST]:
    """Its nodes, without those of functions inside it."""
    pending: list[ast.AST] = list(function.body)
    while pending:
        node = pending.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            pending += ast.iter_child_nodes(node)


def code_lines(node: ast.AST) -> int:
    """Lines with code: no blank ones, comments and docstrings."""
    numbers = {n.lineno for n in ast.walk(node) if isinstance(n, (ast.stmt, ast.expr, ast.arg))}
    for n in ast.walk(node):
        body = getattr(n, "body", None)
        if isinstance(body, list):
            for statement in body:
                text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
                if text and isinstance(statement.value.value, str):  # type: ignore[attr-defined]
                    numbers.discard(statement.lineno)
    return len(numbers)


def functions_where(rule: Callable[[Function], bool], folder: str) -> Count:
    """The functions of a folder that the rule holds for."""
    found = [
        (f"{path}:{name}", code_lines(function))
        for path, tree in of_folder(folder).items()
        for name, function in functions(tree)
        if rule(function)
    ]
    return Count(len(found), [name for name, _ in found], sum(lines for _, lines in found))


def called(node: ast.AST) -> str:
    """The last name of what is called; empty for what is no call."""
    if not isinstance(node, ast.Call):
        return ""
    return ast.unparse(node.func).rpartition(".")[2]


def module_of(path: str) -> str:
    """Dotted name."""
    parts = Path(path.removeprefix("kernels/")).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(module: str) -> str:
    """The part of the house that it belongs to."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "tensorlrf" else parts[0]
