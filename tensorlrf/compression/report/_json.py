"""Dataclasses read back from JSON, each entry checked against its annotation."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from tensorlrf.errors import FileFormatError, TensorlrfError, shown
from tensorlrf.files.strict import once

T = TypeVar("T")

NONSENSE = (ValueError, TypeError, LookupError, AttributeError, RecursionError, ArithmeticError)
"""What reading a text that is something else may raise, and telling what it says as a table; a
whole number may be beyond any float."""


@contextmanager
def read_as(what: str) -> Iterator[None]:
    """Have a text that cannot be read say that it is no `what`: raises FileFormatError."""
    try:
        yield
    except NONSENSE as error:
        if isinstance(error, TensorlrfError):
            raise
        raise FileFormatError(f"text is no {what}: {type(error).__name__}: {error}") from None


def parsed(text: str) -> Any:
    """JSON values of a text in which no key stands twice. Raises what `NONSENSE` says."""
    return json.loads(text, object_pairs_hook=once)


def check_version(version: Any, known: int, what: str) -> None:
    """Raise FileFormatError for a text of another format version than the one that is known."""
    if type(version) is not int or version != known:
        raise FileFormatError(
            f"text is a {what} of format version {shown(version)}, this is {known}"
        )


def read_dataclass(kind: type[T], values: Any, where: str) -> T:
    """A `kind` from what `json.loads` made of `dataclasses.asdict` of one.

    Knows int, float, str, bool, None, unions of them, tuples of one type, of any length or of that
    which is said, and dataclasses.
    A field with the metadata "later" and a default may be missing: texts are older than it is.
    `where` names the place in messages. Raises ValueError for what has other entries or types.
    """
    assert is_dataclass(kind)
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is {shown(values)}, not a mapping")
    known = [field.name for field in fields(kind)]
    later = {field.name for field in fields(kind) if field.metadata.get("later")}
    if not set(known) - later <= set(values) <= set(known):
        raise ValueError(
            f"{where} has the entries {', '.join(sorted(values))}; they must be {', '.join(known)}"
        )
    hints = _hints(kind)
    return kind(**{k: _read(hints[k], values[k], f"{k} of {where}") for k in known if k in values})


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _read(hint: Any, value: Any, where: str) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        wrong: list[str] = []
        for one in get_args(hint):
            try:
                return _read(one, value, where)
            except ValueError as error:
                wrong.append(str(error))
        inner = [text for text in wrong if not text.startswith(f"{where} is ")]
        raise ValueError(inner[0] if inner else f"{where} is {shown(value)}, not {_words(hint)}")
    if get_origin(hint) is tuple and isinstance(value, list):
        of, *more = get_args(hint)
        if more != [...] and len(value) != 1 + len(more):
            raise ValueError(f"{where} is {shown(value)}, not {_words(hint)}")
        return tuple(_read(of, v, f"entry {k} of {where}") for k, v in enumerate(value))
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return read_dataclass(hint, value, where)
    # A whole float may have been written without its point; True is not meant by 1.
    large = type(value) is int and abs(value) >= 1 << 63
    if not large and (type(value) is hint or (hint is float and type(value) is int)):
        return value
    raise ValueError(f"{where} is {shown(value)}, not {_words(hint)}")


def _words(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_words(one) for one in get_args(hint))
    if get_origin(hint) is tuple:
        of, *more = get_args(hint)
        return f"list of {'' if more == [...] else f'{1 + len(more)} '}{_words(of)}"
    if hint is types.NoneType:
        return "null"
    return "mapping" if is_dataclass(hint) else str(hint.__name__)
