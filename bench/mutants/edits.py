"""Every small fault that could be planted in a source text."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from bench.house.trees import Function, functions

COMPARED = {
    "<": "<=",
    "<=": "<",
    ">": ">=",
    ">=": ">",
    "==": "!=",
    "!=": "==",
    "is": "is not",
    "is not": "is",
    "in": "not in",
    "not in": "in",
}
REVERSED = {"<": ">=", "<=": ">", ">": "<=", ">=": "<"}
ARITHMETIC = {"+": "-", "-": "+", "*": "/", "/": "*", "//": "*", "%": "//", "**": "*"}
TEXTS = (ast.Constant, ast.JoinedStr, ast.Tuple, ast.List, ast.ListComp)
SYMBOLS: dict[type[ast.AST], str] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Is: "is",
    ast.IsNot: "is not",
    ast.In: "in",
    ast.NotIn: "not in",
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.Pow: "**",
    ast.And: "and",
    ast.Or: "or",
}


Change = tuple[int, int, str, str, str]
"""An `Edit` without its function."""


class Edit(NamedTuple):
    """`was` at (line, column), both from 0, becomes `now`, within one line of `function`."""

    function: str
    line: int
    column: int
    was: str
    now: str
    kind: str


def edits_of(text: str) -> list[Edit]:
    """Of the bodies of functions; messages of errors, annotations and defaults are left alone."""
    source = _Source(text.splitlines())
    found = []
    for name, function in functions(ast.parse(text)):
        for node in _own_nodes(function):
            found += [Edit(name, *edit) for edit in source.edits(node)]
    return sorted(set(found))


def _own_nodes(function: Function) -> Iterator[ast.AST]:
    """What runs when the function does, without what errors say and functions inside."""
    pending: list[ast.AST] = list(function.body)
    while pending:
        node = pending.pop()
        skipped = (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Assert, ast.ClassDef)
        if isinstance(node, (*skipped, *Function.__args__)):
            continue
        yield node
        pending += [
            child
            for field, value in ast.iter_fields(node)
            if field not in ("annotation", "returns")
            for child in (value if isinstance(value, list) else [value])
            if isinstance(child, ast.AST)
        ]


@dataclass
class _Source:
    lines: list[str]

    def edits(self, node: ast.AST) -> Iterator[Change]:
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            symbol, right = SYMBOLS[type(node.ops[0])], node.comparators[0]
            yield from self._between(node.left, right, symbol, COMPARED[symbol], "comparison")
            if symbol in REVERSED:
                yield from self._between(node.left, right, symbol, REVERSED[symbol], "comparison")
        elif isinstance(node, ast.BinOp) and type(node.op) in SYMBOLS:
            if not isinstance(node.left, TEXTS) and not isinstance(node.right, TEXTS[1:]):
                symbol = SYMBOLS[type(node.op)]
                yield from self._between(
                    node.left, node.right, symbol, ARITHMETIC[symbol], "arithmetic"
                )
        elif isinstance(node, ast.BoolOp):
            symbol = SYMBOLS[type(node.op)]
            other = {"and": "or", "or": "and"}[symbol]
            yield from self._between(node.values[0], node.values[1], symbol, other, "and, or")
        elif isinstance(node, ast.Constant):
            yield from self._constant(node)
        elif isinstance(node, ast.Return) and isinstance(node.value, ast.BinOp):
            yield from self._whole(node.value, ast.unparse(node.value.left), "operand returned")
        elif isinstance(node, ast.Call):
            yield from self._call(node)
        if isinstance(node, (ast.If, ast.IfExp, ast.While)):
            yield from self._whole(node.test, f"not ({ast.unparse(node.test)})", "negation")

    def _constant(self, node: ast.Constant) -> Iterator[Change]:
        value = node.value
        if isinstance(value, bool):
            yield from self._whole(node, repr(not value), "constant")
        elif isinstance(value, int):
            yield from self._whole(node, repr(value + 1), "constant")
            if value > 0:
                yield from self._whole(node, repr(value - 1), "constant")
        elif isinstance(value, float):
            yield from self._whole(node, repr(2 * value if value else 1.0), "constant")

    def _call(self, node: ast.Call) -> Iterator[Change]:
        if isinstance(node.func, ast.Name) and node.func.id in ("min", "max"):
            other = {"min": "max", "max": "min"}[node.func.id]
            yield from self._whole(node.func, other, "min, max")
        simple = (ast.Name, ast.Attribute, ast.Subscript)
        if len(node.args) >= 2 and all(isinstance(a, simple) for a in node.args[:2]):
            first, second = node.args[:2]
            if first.lineno == second.end_lineno:
                now = f"{ast.unparse(second)}, {ast.unparse(first)}"
                end = second.end_col_offset or 0
                yield from self._span(first.lineno, first.col_offset, end, now, "arguments swapped")
        before: ast.AST | None = node.args[-1] if node.args else None
        for keyword in node.keywords:
            if before is not None and before.end_lineno == keyword.end_lineno:  # type: ignore[attr-defined]
                start, end = before.end_col_offset, keyword.end_col_offset or 0  # type: ignore[attr-defined]
                yield from self._span(keyword.lineno, start, end, "", "argument dropped")
            before = keyword

    def _between(
        self, left: ast.expr, right: ast.expr, symbol: str, other: str, kind: str
    ) -> Iterator[Change]:
        if left.end_lineno != right.lineno:
            return
        for line, column, gap, _, _ in self._span(
            right.lineno, left.end_col_offset or 0, right.col_offset, "", kind
        ):
            found = re.search(rf"(?<!\S){re.escape(symbol)}(?!\S)", gap)
            if found is not None:
                yield line, column + found.start(), symbol, other, kind

    def _whole(self, node: ast.expr, now: str, kind: str) -> Iterator[Change]:
        if node.lineno == node.end_lineno:
            end = node.end_col_offset or 0
            yield from self._span(node.lineno, node.col_offset, end, now, kind)

    def _span(self, lineno: int, start: int, end: int, now: str, kind: str) -> Iterator[Change]:
        raw = self.lines[lineno - 1].encode()  # ast counts bytes
        column = len(raw[:start].decode())
        was = raw[start:end].decode()
        if was != now:
            yield lineno - 1, column, was, now, kind
