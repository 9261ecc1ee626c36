"""Nodes to what annotations ask for, and values to what a text can hold."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from tensorlrf.compression.methods import MODULAR, config_of, method_from_dict, words
from tensorlrf.compression.recipe._yaml import Node, Unclear
from tensorlrf.decomposition.configs import Method
from tensorlrf.errors import ArgumentError, TensorlrfError, shown

NAME = "name"
"""The key of a mapping that is a method with options, as in JSON."""

T = TypeVar("T")


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union, those of unions in it among them, or the hint alone."""
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(one for member in get_args(hint) for one in alternatives(member))
    return (hint,)


def in_text(hint: Any) -> bool:
    """Whether a text can hold a value of one alternative: no function, no object, not just any."""
    return any(_serves(one) for one in alternatives(hint) if one is not types.NoneType)


def _serves(one: Any) -> bool:
    if one in (bool, int, float, str) or get_origin(one) is Literal:
        return True
    if get_origin(one) in (tuple, Sequence, Mapping):
        return all(inner is ... or in_text(inner) for inner in get_args(one))
    return isinstance(one, type) and (issubclass(one, Method) or is_dataclass(one))


def read(hint: Any, node: Node) -> Any:
    """The value of a node, of the first alternative that takes it; lists as tuples where the hint
    says so. Raises FileFormatError, or ArgumentError where no file is read."""
    value, kinds = node.value, alternatives(hint)
    if isinstance(value, Unclear):
        raise node.wrong(
            f"{shown(str(value))} without quotes means different things to readers of YAML; put "
            "it into quotes where a word is meant, else write true, false, or a decimal number"
        )
    if value is None and types.NoneType in kinds:
        return None
    for one in kinds:
        reader = _READERS.get(type(value))
        if reader is not None and (found := reader(one, node)) is not None:
            return found[0]
    quotes = "; put it into quotes" if _is_word(value) and str in kinds else ""
    raise node.wrong(f"{_shown(value)} must be {told(hint)}{quotes}")


def _is_word(value: Any) -> bool:
    return isinstance(value, (bool, int, float))


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return shown(value)


def _read_flag(one: Any, node: Node) -> tuple[Any] | None:
    return (node.value,) if one is bool else None


def _read_number(one: Any, node: Node) -> tuple[Any] | None:
    fits = one is float or one is type(node.value)
    return (node.value,) if fits else None


def _read_word(one: Any, node: Node) -> tuple[Any] | None:
    if one is str:
        return (node.value,)
    if get_origin(one) is Literal and node.value in get_args(one):
        return (node.value,)
    if isinstance(one, type) and issubclass(one, Method):
        return (method_from_dict({NAME: node.value}),)
    return None


def _read_list(one: Any, node: Node) -> tuple[Any] | None:
    origin = get_origin(one)
    if origin is Sequence:
        return ([read(get_args(one)[0], inner) for inner in node.value],)
    if origin is not tuple:
        return None
    of, *more = get_args(one)
    if more == [...]:
        return (tuple(read(of, inner) for inner in node.value),)
    if len(node.value) != 1 + len(more):
        return None
    return (tuple(read(h, inner) for h, inner in zip((of, *more), node.value, strict=True)),)


def _read_mapping(one: Any, node: Node) -> tuple[Any] | None:
    if isinstance(one, type) and issubclass(one, Method):
        return (_method(node),) if NAME in node.value else None
    if isinstance(one, type) and is_dataclass(one):
        return (built(one, node, _entries(one, node)),)
    if get_origin(one) is Mapping:
        _, of = get_args(one)
        return ({key: read(of, inner) for key, inner in node.value.items()},)
    return None


_READERS: dict[type, Callable[[Any, Node], tuple[Any] | None]] = {
    bool: _read_flag,
    int: _read_number,
    float: _read_number,
    str: _read_word,
    list: _read_list,
    dict: _read_mapping,
}
"""The type of a node's value -> a reader: an alternative and the node to the value in a tuple, or
None where the alternative is of another kind."""


def check_method_words(value: Any, node: Node) -> None:
    """Raise the error for a word that is no method, of this package or of one that is imported: a
    text has nothing imported."""
    if isinstance(value, str) and value != MODULAR:
        _of_node(node, lambda: method_from_dict({NAME: value}))
    elif isinstance(value, Mapping):
        for key, one in value.items():
            check_method_words(one, node.value[key])


def _method(node: Node) -> Method:
    name = node.value[NAME]
    if not isinstance(name.value, str) or isinstance(name.value, Unclear):
        raise name.wrong(f"{_shown(name.value)} must be the word of a method: {', '.join(words())}")
    _of_node(name, lambda: method_from_dict({NAME: name.value}))
    entries = _entries(config_of(name.value), node, NAME)

    def make(**options: Any) -> Method:
        return method_from_dict({NAME: name.value, **options})

    return built(make, node, entries)


def _entries(kind: type, node: Node, *others: str) -> dict[str, tuple[Node, Any]]:
    """Field -> its node, and the value there, of the fields that are given."""
    hints = hints_of(kind)
    check_keys(node, hints, others)
    return {
        key: (inner, read(hints[key], inner))
        for key, inner in node.value.items()
        if key not in others
    }


@cache
def hints_of(kind: type) -> dict[str, Any]:
    """The fields of a dataclass, with their annotations."""
    hints = get_type_hints(kind)
    assert is_dataclass(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def check_keys(node: Node, valid: Mapping[str, Any], others: Sequence[str] = ()) -> None:
    """Raise the error for a key that there is not, with the nearest that there is."""
    known = (*others, *valid)
    for key, inner in node.value.items():
        if key not in known:
            near = get_close_matches(key, known, 1, 0.5)
            hint = f"did you mean {near[0]}? " if near else ""
            raise inner.wrong(f"there is no such key; {hint}The keys are {', '.join(known)}")


def built(make: Callable[..., T], node: Node, entries: Mapping[str, tuple[Node, Any]]) -> T:
    """make(**values); an error is told of the entry that brings it about."""
    try:
        return make(**{key: value for key, (_, value) in entries.items()})
    except TensorlrfError as error:
        first = error
    values: dict[str, Any] = {}
    for key, (inner, value) in entries.items():
        values[key] = value
        _of_node(inner, lambda: make(**values))
    raise node.wrong(first)


def _of_node(node: Node, make: Callable[[], object]) -> None:
    try:
        make()
    except TensorlrfError as error:
        raise node.wrong(error) from None


def told(hint: Any) -> str:
    """In words, what a text may say for it."""
    return " or ".join(dict.fromkeys(_told(one) for one in alternatives(hint) if _serves(one)))


def _told(one: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
    if one in names:
        return names[one]
    if get_origin(one) is Literal:
        return " or ".join(map(repr, get_args(one)))
    if get_origin(one) in (tuple, Sequence):
        _of, *more = get_args(one)
        return f"a list of {1 + len(more)}" if more and more != [...] else "a list"
    if isinstance(one, type) and issubclass(one, Method):
        return f"a method as {{{NAME}: svd, ...}}"
    if isinstance(one, type):
        return f"a mapping with {', '.join(hints_of(one))}"
    return "a mapping"


def plain(value: Any) -> Any:
    """What a text says of a value: of a dataclass what differs from its defaults, and of a method
    that has nothing such its word. Raises ArgumentError for what no text can say."""
    if isinstance(value, Method):
        options = _changed(value)
        return {NAME: value.word, **options} if options else value.word
    if is_dataclass(value) and not isinstance(value, type):
        return _changed(value)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if value is None:
        return None
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    for kind in (bool, int, str):
        if isinstance(value, kind):
            return kind(value)
    raise ArgumentError(
        f"a recipe cannot say {shown(value)}, a {type(value).__name__}; give it to Recipe.compress"
    )


def _changed(value: Any) -> dict[str, Any]:
    given = ((field, getattr(value, field.name)) for field in fields(value))
    return {field.name: plain(own) for field, own in given if own != default_of(field)}


def default_of(field: Field[Any]) -> Any:
    """The default of a field of a dataclass."""
    return field.default if field.default_factory is MISSING else field.default_factory()
