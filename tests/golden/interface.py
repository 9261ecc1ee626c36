"""The public names of every package: what stands behind them and how it is called."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

PACKAGES = (
    "tensorlrf",
    *(f"tensorlrf.{name}" for name in ("compression", "decomposition", "errors", "factors", "io")),
    *(f"tensorlrf.{name}" for name in ("large", "nn", "ops", "ops.explain")),
)


def public_names() -> Iterator[str]:
    """A line for each name, and for each method and field of a class below it, once."""
    seen: set[int] = set()
    for package in PACKAGES:
        module = importlib.import_module(package)
        yield package
        for name in sorted(getattr(module, "__all__", _own(module))):
            value = getattr(module, name)
            again = id(value) in seen and not isinstance(value, str)
            seen.add(id(value))
            yield f"    {name}{'' if again else _told(value)}"
            if inspect.isclass(value) and not again:
                yield from (f"        {line}" for line in _members(value))


def _own(module: Any) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def _told(value: Any) -> str:
    if inspect.ismodule(value):
        return ", a module"
    if inspect.isclass(value):
        bases = ", ".join(base.__name__ for base in value.__bases__)
        return f"({bases}){_signature(value)}"
    return _signature(value) if callable(value) else f", a {type(value).__name__}"


def _members(cls: type) -> Iterator[str]:
    """What the class defines itself, or takes from a base that is not public."""
    names = {
        name: value
        for base in reversed(cls.__mro__)
        if base.__module__.startswith("tensorlrf")
        for name, value in vars(base).items()
    }
    for name, value in sorted(names.items()):
        if name.startswith("_") and name != "__iter__":
            continue
        if isinstance(value, (classmethod, staticmethod)):
            yield f"{name}{_signature(value.__func__)}, a {type(value).__name__}"
        elif isinstance(value, property):
            yield f"{name}, a property"
        elif callable(value):
            yield f"{name}{_signature(value)}"


def _signature(value: Any) -> str:
    try:
        text = str(inspect.signature(value))
    except (TypeError, ValueError):
        return ""
    return re.sub(r" at 0x[0-9a-f]+", "", text)
