"""The JSON schema of recipes: annotations and docstrings of `compress`, and of what it takes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from tensorlrf.compression._apply import apply
from tensorlrf.compression._compress import compress
from tensorlrf.compression.losses._sensitivity import sensitivity
from tensorlrf.compression.methods import MODULAR, config_of, words
from tensorlrf.compression.plan._planning import plan
from tensorlrf.compression.recipe._values import (
    NAME,
    alternatives,
    default_of,
    hints_of,
    in_text,
    plain,
)
from tensorlrf.compression.recipe.keys import OUTPUT, keys
from tensorlrf.decomposition.configs import Method
from tensorlrf.decomposition.signatures import parameters

DRAFT = "https://json-schema.org/draft/2020-12/schema"
CHOICES = re.compile(r"\{(\"[^}]*\")\}")
"""Words in braces, as docstrings list what an argument may be."""

SIMPLE = {bool: "boolean", int: "integer", float: "number", str: "string", NoneType: "null"}

Schema = dict[str, Any]


def schema_of() -> Schema:
    """Of a whole recipe."""
    told = _told()
    entries: Schema = {}
    for key, found in keys().items():
        one = _of(found.hint, told.get(key, ("", ""))[0])
        text = told.get(key, ("", ""))[1]
        default = {} if found.default is None else {"default": plain(found.default)}
        entries[key] = {"description": text, **one, **default}
    entries[OUTPUT]["description"] = "The file or folder that the command line writes."
    entries["method"]["anyOf"].insert(0, {"const": MODULAR})
    with_options = ({"$ref": f"#/$defs/{word}"} for word in words())
    any_method = {"anyOf": [{"enum": list(words())}, *with_options]}
    return {
        "$schema": DRAFT,
        "title": "Recipe of tensorlrf",
        "type": "object",
        "properties": entries,
        "additionalProperties": False,
        "$defs": {"method": any_method, **{word: _of_method(word) for word in words()}},
    }


def _told() -> dict[str, tuple[str, str]]:
    """Argument -> (what it may be, what is said of it), by the docstring that says most of it
    alone."""
    found: dict[str, tuple[int, str, str]] = {}
    for function in (plan, apply, sensitivity, compress):
        for names, kind, text in parameters(inspect.getdoc(function) or ""):
            about = _one_line(text)
            for name in names:
                apart = len(names) if not re.search(r"\b[Aa]s (in|of)\b `?\w", about[:40]) else 99
                if name not in found or apart < found[name][0]:
                    found[name] = apart, kind, about
    return {name: (kind, text) for name, (_, kind, text) in found.items()}


def _one_line(text: str) -> str:
    """A text without its breaks, and without the words that lead to the next argument."""
    return re.sub(r" Or( instead)?$", "", " ".join(text.split()))


def _of(hint: Any, kind: str = "") -> Schema:
    """Of an annotation; `kind` is what a docstring says that it may be."""
    members = alternatives(hint)
    if Method in members:  # its word is the string
        members = tuple(one for one in members if one is not str)
    found = [_of_one(one, kind) for one in members if _is_told(one)]
    return found[0] if len(found) == 1 else {"anyOf": found}


def _is_told(one: Any) -> bool:
    return one is NoneType or in_text(one)


def _of_one(one: Any, kind: str) -> Schema:
    choices = CHOICES.search(kind)
    if one is str and choices is not None:
        return {"enum": re.findall(r'"([^"]*)"', choices[1])}
    if one in SIMPLE:
        return {"type": SIMPLE[one]}
    origin = get_origin(one)
    if origin is Literal:
        return {"enum": list(get_args(one))}
    if origin in (tuple, Sequence):
        of, *more = get_args(one)
        if not more or more == [...]:
            return {"type": "array", "items": _of(of)}
        of_each = [_of(inner) for inner in (of, *more)]
        return {
            "type": "array", "prefixItems": of_each, "items": False, "minItems": len(of_each)
        }  # fmt: skip
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _of(get_args(one)[1])}
    if issubclass(one, Method):
        return {"$ref": "#/$defs/method"}
    return _of_dataclass(one)


def _of_method(word: str) -> Schema:
    found = _of_dataclass(config_of(word))
    found["properties"] = {NAME: {"const": word}, **found["properties"]}
    return {**found, "required": [NAME]}


def _of_dataclass(kind: type) -> Schema:
    assert is_dataclass(kind)
    doc = inspect.getdoc(kind) or ""
    told = {name: (k, text) for names, k, text in parameters(doc) for name in names}
    entries: Schema = {}
    for field in fields(kind):
        said, text = told.get(field.name, ("", ""))
        value = default_of(field)
        default = {} if value is None else {"default": plain(value)}
        own = _of(hints_of(kind)[field.name], said)
        entries[field.name] = {"description": _one_line(text), **own, **default}
    return {
        "type": "object",
        "description": _one_line(doc.partition("\n\n")[0]),
        "properties": entries,
        "additionalProperties": False,
    }
