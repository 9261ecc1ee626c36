"""Straight code, written line by line."""

from __future__ import annotations

import itertools
import keyword
import linecache
import math
import operator
import re
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch

_INFIX = {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "matmul": "@"}
_PLAIN = (int, str, slice, torch.dtype, torch.device, type(None), type(...))
"""Of which repr is code."""

_WRITTEN: WeakValueDictionary[Any, Callable[..., Any]] = WeakValueDictionary()
"""Functions by their source and by what it names, as long as they live: sizes are seldom part of
it."""

_numbers = itertools.count()


class Source:
    """Of a function: one call a line.

    What the calls make are values of any kind, which are known again by their identity.
    """

    def __init__(self, arguments: Iterable[tuple[Any, str]]) -> None:
        """Of arguments, each with the name that it should have."""
        self._names: dict[int, str] = {}
        self._globals: dict[str, Any] = {"torch": torch}
        self._taken = {"torch", "lowered", *keyword.kwlist}
        for value, name in arguments:
            self._names[id(value)] = self._free(name)
        self._head = f"def lowered({', '.join(self._names.values())}):"
        self._lines: list[str] = []

    def call(
        self,
        made: Any,
        function: Callable[..., Any] | str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        last: Iterable[Any] = (),
    ) -> None:
        """A line in which a function, or a method by its name, makes a value of others; those that
        it is the `last` one to use are given up."""
        code = self._code(function, args, kwargs)
        gone = [self._names[id(value)] for value in last]
        self._names[id(made)] = name = self._free("t")
        self._lines.append("; ".join([f"{name} = {code}", *(f"del {old}" for old in gone)]))

    def function(self, result: Any) -> Callable[..., Any]:
        """What the lines make of the arguments."""
        lines = [self._head, *self._lines, f"return {self._names[id(result)]}"]
        source = "\n    ".join(lines) + "\n"
        key = source, *((name, id(value)) for name, value in self._globals.items())
        found = _WRITTEN.get(key)
        if found is None:
            file = f"<lowered_{next(_numbers)}>"
            linecache.cache[file] = (len(source), None, source.splitlines(True), file)
            exec(compile(source, file, "exec"), self._globals)
            found = _WRITTEN[key] = self._globals.pop("lowered")
            weakref.finalize(found, linecache.cache.pop, file, None).atexit = False
        return found

    def _code(
        self, function: Callable[..., Any] | str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> str:
        if function is getattr:
            return f"{self._told(args[0])}.{args[1]}"
        if function is operator.getitem:
            return f"{self._told(args[0])}[{self._index(args[1])}]"
        first, *others = told = [self._told(value) for value in args]
        told += [f"{name}={self._told(value)}" for name, value in kwargs.items()]
        if isinstance(function, str):
            return f"{first}.{function}({', '.join(told[1:])})"
        name = name_of(function)
        if getattr(operator, name, None) is function and name in _INFIX:
            return f"{first} {_INFIX[name]} {others[0]}"
        return f"{self._global(function, name)}({', '.join(told)})"

    def _index(self, value: Any) -> str:
        """What stands between brackets."""
        if isinstance(value, tuple) and value:
            return ", ".join(map(self._index, value))
        if isinstance(value, slice):
            parts = (value.start, value.stop, value.step)
            start, stop, step = ("" if part is None else self._told(part) for part in parts)
            return f"{start}:{stop}:{step}" if step else f"{start}:{stop}"
        return "..." if value is ... else self._told(value)

    def _told(self, value: Any) -> str:
        """A value as code."""
        name = self._names.get(id(value))
        if name is not None:
            return name
        if isinstance(value, list):
            return f"[{', '.join(map(self._told, value))}]"
        if isinstance(value, tuple):
            inner = ", ".join(map(self._told, value))
            kind = type(value)
            if hasattr(kind, "_fields"):
                return f"{self._global(kind, kind.__name__)}({inner})"
            return f"({inner},)" if value else "()"
        if isinstance(value, _PLAIN) or (isinstance(value, float) and math.isfinite(value)):
            return repr(value)
        return self._global(value, "constant")

    def _global(self, value: Any, name: str) -> str:
        """What the code has from outside."""
        for known, one in self._globals.items():
            if one is value:
                return known
        free = self._free(re.sub(r"\W", "_", name))
        self._globals[free] = value
        return free

    def _free(self, name: str) -> str:
        """The name, or with a number where that is taken."""
        name = name.replace(".", "_")
        free, k = name, 0
        while free in self._taken:
            k += 1
            free = f"{name}_{k}"
        self._taken.add(free)
        return free


def name_of(function: Any) -> str:
    """The function or method, as torch calls it."""
    if isinstance(function, str):
        return function
    return str(getattr(function, "__name__", type(function).__name__))
